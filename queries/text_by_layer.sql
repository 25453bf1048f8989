-- title: What every layer wrote for a sample
-- about: The text that each layer generated for one prompt, how it ended, and how sure the layer was of its tokens.
-- param: sample = '' -- start of a sample's id; the first sample when empty
-- param: prompt = '' -- words that the sample's prompt contains
-- param: run = '' -- start of a run's id; the first run when empty
-- param: output = '' -- start of the generated output's name; all when empty
-- param: condition = 'clean' -- the condition
WITH chosen AS (
    SELECT run, condition, sample_id
    FROM samples
    SEMI JOIN generations USING (run, condition, sample_id)
    WHERE starts_with(run, $run) AND condition = $condition
      AND starts_with(sample_id, $sample) AND contains(lower(prompt), lower($prompt))
    ORDER BY run, sample_id
    LIMIT 1
)
SELECT run, sample_id, output, layer, name, text, finish_reason, len(token_ids) AS tokens,
       list_avg(token_logprobs) AS mean_logprob, list_avg(token_entropies) AS mean_entropy
FROM generations
SEMI JOIN chosen USING (run, condition, sample_id)
LEFT JOIN layers USING (run, layer)
WHERE starts_with(output, $output)
ORDER BY output, layer
