-- title: How much each layer turns a sample's state
-- about: Cosine, distance and norm of a sample's state beside those of the stored layer before it; with a token
-- about: pooling, of every token.
-- none: no states of this pooling are kept: name another with --param pooling=last@prompt (`layercache show RUN` lists
-- none: them)
-- param: sample = '' -- start of a sample's id; the first sample when empty
-- param: run = '' -- start of a run's id; the first run when empty
-- param: condition = 'clean' -- the condition
-- param: site = 'resid' -- resid, attn_out or mlp_out
-- param: pooling = 'mean@prompt' -- the pooling
WITH chosen AS (
    SELECT run, sample_id
    FROM hidden
    WHERE starts_with(run, $run) AND condition = $condition AND site = $site AND pooling = $pooling
      AND starts_with(sample_id, $sample)
    ORDER BY run, sample_id
    LIMIT 1
),
states AS (
    SELECT run, sample_id, layer, vector,
           lag(layer) OVER (PARTITION BY position ORDER BY layer) AS previous_layer,
           lag(vector) OVER (PARTITION BY position ORDER BY layer) AS previous, position
    FROM hidden
    SEMI JOIN chosen USING (run, sample_id)
    WHERE condition = $condition AND site = $site AND pooling = $pooling
)
SELECT run, sample_id, position, previous_layer, layer,
       cosine(previous, vector) AS cosine, l2(previous, vector) AS distance, norm(vector) AS norm
FROM states
ORDER BY layer, position
