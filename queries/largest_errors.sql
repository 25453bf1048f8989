-- title: Where a probe of a number is furthest off
-- about: Out-of-fold predictions of numbers, the largest absolute error first; each label at the site, pooling
-- about: and layer with the smallest mean squared error, unless a layer is given.
-- none: no label of kind number was probed: `layercache extract --label NAME:number`, then `layercache analyze probe`
-- param: label = '' -- a label; all when empty
-- param: layer = null -- a layer
-- param: run = '' -- start of a run's id; all runs when empty
-- param: limit = 20 -- how many
WITH scores AS (
    SELECT run, data, label, site, pooling, layer, row, sample_id,
           max(value) FILTER (metric = 'prediction') AS prediction,
           max(value) FILTER (metric = 'error') AS error
    FROM sample_scores
    WHERE analysis = 'probe' AND "group" IS NULL AND metric IN ('prediction', 'error')
      AND starts_with(run, $run) AND ($label = '' OR label = $label)
      AND ($layer IS NULL OR layer = CAST($layer AS INTEGER))
    GROUP BY ALL
),
places AS (
    SELECT run, data, label, min_by(struct_pack(site, pooling, layer), (mse, layer)) AS best
    FROM (SELECT run, data, label, site, pooling, layer, avg(error ** 2) AS mse FROM scores GROUP BY ALL)
    GROUP BY ALL
),
prompts AS (
    SELECT run, sample_id, prompt FROM samples WHERE condition = 'clean'
)
SELECT run, data, label, site, pooling, layer, row, prediction, prediction - error AS truth, error, prompt
FROM scores
JOIN places USING (run, data, label)
LEFT JOIN prompts USING (run, sample_id)
WHERE struct_pack(site, pooling, layer) = best
ORDER BY abs(error) DESC, run, data, label, row
LIMIT CAST($limit AS INTEGER)
