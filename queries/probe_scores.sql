-- title: Probe scores by layer
-- about: One metric of one label over all layers, with its 95 % interval and the baselines.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: label = '' -- a label; all when empty
-- param: metric = '' -- mse, r2, spearman, accuracy, balanced_accuracy, macro_f1, auc; all when empty
SELECT run, data, label, metric, coalesce("group", 'probe') AS system, site, pooling, layer, value, low, high, n
FROM results
WHERE analysis = 'probe' AND starts_with(run, $run) AND ($label = '' OR label = $label)
  AND ($metric = '' OR metric = $metric)
ORDER BY run, data, label, metric, system <> 'probe', system, site, pooling, layer
