-- title: What a sample's next token is, layer by layer
-- about: The most probable tokens of the logit lens and their probabilities, for one sample.
-- param: sample = '' -- start of a sample's id; the first sample when empty
-- param: prompt = '' -- words that the sample's prompt contains
-- param: run = '' -- start of a run's id; the first run when empty
-- param: condition = 'clean' -- the condition
-- param: k = 5 -- how many tokens
WITH chosen AS (
    SELECT run, condition, sample_id
    FROM samples
    SEMI JOIN lens USING (run, condition, sample_id)
    WHERE starts_with(run, $run) AND condition = $condition
      AND starts_with(sample_id, $sample) AND contains(lower(prompt), lower($prompt))
    ORDER BY run, sample_id
    LIMIT 1
)
SELECT run, sample_id, position_name, layer, name,
       top_tokens[1:CAST($k AS INTEGER)] AS tokens,
       [round(exp(logprob), 4) FOR logprob IN top_logprobs[1:CAST($k AS INTEGER)]] AS probabilities,
       entropy, target_rank
FROM lens
SEMI JOIN chosen USING (run, condition, sample_id)
LEFT JOIN layers USING (run, layer)
-- One position may be held by several outputs: with more tokens, or with choices.
QUALIFY row_number() OVER (PARTITION BY position_name, layer, position ORDER BY len(top_ids) DESC, output) = 1
ORDER BY position_name, layer, position
