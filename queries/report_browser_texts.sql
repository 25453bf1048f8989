-- For the report: what every layer wrote for some samples.
SELECT sample_id, layer, text
FROM generations
WHERE run = $run AND condition = $condition AND output = $output AND sample_id IN (SELECT unnest($samples))
ORDER BY sample_id, layer
