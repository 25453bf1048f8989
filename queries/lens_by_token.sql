-- title: The logit lens at every token of a sample, layer by layer
-- about: The most probable next token, its probability, the entropy, and the rank and probability of the token that
-- about: really follows: the numbers of a heat map of token × layer. Needs `extract --lens token`.
-- none: the lens was read at some tokens only: `layercache extract --lens token` reads it at every one
-- param: sample = '' -- start of a sample's id; the first sample when empty
-- param: prompt = '' -- words that the sample's prompt contains
-- param: run = '' -- start of a run's id; the first run when empty
-- param: condition = 'clean' -- the condition
WITH chosen AS (
    SELECT run, condition, sample_id
    FROM samples
    SEMI JOIN (SELECT * FROM lens WHERE starts_with(position_name, 'token@')) USING (run, condition, sample_id)
    WHERE starts_with(run, $run) AND condition = $condition
      AND starts_with(sample_id, $sample) AND contains(lower(prompt), lower($prompt))
    ORDER BY run, sample_id
    LIMIT 1
)
SELECT lens.run, lens.sample_id, lens.position, tokens.text AS token, lens.layer,
       top_tokens[1] AS top_token, round(exp(top_logprobs[1]), 4) AS probability, entropy,
       target_rank, round(exp(target_logprob), 4) AS target_probability
FROM lens
SEMI JOIN chosen USING (run, condition, sample_id)
LEFT JOIN tokens USING (run, condition, sample_id, position)
WHERE starts_with(position_name, 'token@')
QUALIFY row_number() OVER (PARTITION BY lens.layer, lens.position ORDER BY output) = 1
ORDER BY lens.position, lens.layer
