-- For the report: every sample's prompt and its entropy at one layer of a lens.
SELECT sample_id, samples.prompt, lens.entropy
FROM lens
JOIN samples USING (run, condition, sample_id)
WHERE run = $run AND condition = $condition AND lens.output = $output AND lens.layer = $layer
ORDER BY sample_id
