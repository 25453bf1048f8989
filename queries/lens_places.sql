-- For reading stored states with the head kept beside the run: where there is a state of one token, and what came next in
-- the prompt, or the declared target at its end. A sample id has a fixed number of digits, so keys sort by it, then position.
WITH places AS (
    SELECT DISTINCT sample_id, position
    FROM hidden
    WHERE
        run = $run AND condition = $condition AND site = 'resid' AND pooling = $pooling AND list_contains($layers, layer)
        AND ($ids IS NULL OR sample_id IN (SELECT unnest($ids)))
)
SELECT
    concat(sample_id, ' ', lpad(CAST(position AS VARCHAR), 9, '0')) AS key,
    sample_id,
    position,
    coalesce(following.token_id, CASE WHEN position = n_tokens - 1 THEN target_id END) AS target_id
FROM places
JOIN (SELECT sample_id, n_tokens, target_id FROM samples WHERE run = $run AND condition = $condition) USING (sample_id)
LEFT JOIN (
    SELECT sample_id, position - 1 AS position, token_id FROM tokens WHERE run = $run AND condition = $condition
) AS following USING (sample_id, position)
ORDER BY key
