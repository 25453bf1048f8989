-- For the report: one lens of some samples, with the most probable tokens of each layer and position.
SELECT
    sample_id,
    layer,
    position,
    entropy,
    top_ids[1:$most] AS ids,
    top_tokens[1:$most] AS texts,
    top_logprobs[1:$most] AS logprobs,
    target_id,
    target_logprob,
    target_rank
FROM lens
WHERE run = $run AND condition = $condition AND output = $output AND sample_id IN (SELECT unnest($samples))
ORDER BY sample_id, layer, position
