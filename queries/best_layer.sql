-- title: The best layer of every probe
-- about: For each run, data set, label and metric: the site, pooling and layer where the probe scores best,
-- about: beside the embedding layer's score and the best baseline that sees no states. `ties` counts the other places
-- about: that score the same; the lowest layer is named.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: label = '' -- a label; all when empty
WITH scores AS (
    SELECT *, CASE WHEN metric = 'mse' THEN -value ELSE value END AS goodness
    FROM results
    WHERE analysis = 'probe' AND starts_with(run, $run) AND ($label = '' OR label = $label)
      AND metric IN ('mse', 'r2', 'spearman', 'accuracy', 'balanced_accuracy', 'macro_f1', 'auc')
      AND NOT isnan(value)
),
ranked AS (
    SELECT *, max(goodness) OVER (PARTITION BY run, data, label, metric) AS top FROM scores WHERE "group" IS NULL
),
probes AS (
    SELECT run, data, label, metric,
           max_by(struct_pack(site, pooling, layer, value, low, high, n), (goodness, -layer)) AS best,
           max(goodness) FILTER (layer = 0) AS embedding,
           count(*) FILTER (goodness = top) - 1 AS ties
    FROM ranked
    GROUP BY ALL
),
baselines AS (
    SELECT run, data, label, metric, max_by("group", goodness) AS baseline, max_by(value, goodness) AS score
    FROM scores WHERE "group" IS NOT NULL AND layer IS NULL
    GROUP BY ALL
)
SELECT run, data, label, metric, best.site, best.pooling, best.layer, best.value, best.low, best.high, best.n, ties,
       CASE WHEN metric = 'mse' THEN -embedding ELSE embedding END AS layer_0,
       baseline, score AS baseline_value
FROM probes
LEFT JOIN baselines USING (run, data, label, metric)
ORDER BY run, data, label, metric
