-- title: Where a probe is most sure and wrong
-- about: Out-of-fold predictions of categories and booleans that are wrong, the most probable first; each label
-- about: at the site, pooling and layer with the most correct predictions, unless a layer is given.
-- none: no label of kind category or boolean was probed, or every prediction is right
-- param: label = '' -- a label; all when empty
-- param: layer = null -- a layer
-- param: run = '' -- start of a run's id; all runs when empty
-- param: limit = 20 -- how many
WITH scores AS (
    SELECT run, data, label, site, pooling, layer, row, sample_id,
           max(value) FILTER (metric = 'correct') AS correct,
           max(value) FILTER (metric = 'predicted') AS probability,
           max(text) FILTER (metric = 'predicted') AS predicted
    FROM sample_scores
    WHERE analysis = 'probe' AND "group" IS NULL AND metric IN ('correct', 'predicted')
      AND starts_with(run, $run) AND ($label = '' OR label = $label)
      AND ($layer IS NULL OR layer = CAST($layer AS INTEGER))
    GROUP BY ALL
),
places AS (
    SELECT run, data, label, max_by(struct_pack(site, pooling, layer), (correct, -layer)) AS best
    FROM (SELECT run, data, label, site, pooling, layer, avg(correct) AS correct FROM scores GROUP BY ALL)
    GROUP BY ALL
),
truths AS (
    SELECT run, data, row, name AS label,
           CASE kind WHEN 'boolean' THEN CAST(CAST(number AS BOOLEAN) AS VARCHAR) ELSE text END AS truth
    FROM labels
),
prompts AS (
    SELECT run, sample_id, prompt FROM samples WHERE condition = 'clean'
)
SELECT run, data, label, site, pooling, layer, row, predicted, probability, truth, prompt
FROM scores
JOIN places USING (run, data, label)
JOIN truths USING (run, data, label, row)
LEFT JOIN prompts USING (run, sample_id)
WHERE correct = 0 AND struct_pack(site, pooling, layer) = best
ORDER BY probability DESC, run, data, label, row
LIMIT CAST($limit AS INTEGER)
