-- For the report: the most probable tokens of one sample, a line a token and layer, rank 0 = most probable.
SELECT
    layer,
    entropy,
    CAST(place - 1 AS INTEGER) AS rank,
    top_ids[place] AS token_id,
    top_tokens[place] AS token,
    top_logprobs[place] AS logprob,
    coalesce(top_ids[place] = target_id, false) AS is_target
FROM (
    SELECT *, unnest(range(1, len(top_ids) + 1)) AS place
    FROM lens
    WHERE run = $run AND condition = $condition AND output = $output AND sample_id = $sample
)
ORDER BY layer, place
