-- For the report: the tokens of some samples.
SELECT sample_id, position, token_id, text
FROM tokens
WHERE run = $run AND condition = $condition AND sample_id IN (SELECT unnest($samples))
ORDER BY sample_id, position
