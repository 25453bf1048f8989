-- For the report: what every layer wrote for one sample.
SELECT layer, text
FROM generations
WHERE run = $run AND condition = $condition AND output = $output AND sample_id = $sample
ORDER BY layer
