-- title: Quality of states by layer
-- about: What `analyze quality` found at every layer: entropy, effective rank and dimension of the data set's states,
-- about: invariance under views, means of statistics over tokens. Depth is 0 at the embedding output, 100 after the last
-- about: block, NULL after the final norm, which is no block further. A group names a chance level (shuffled, chance) beside a number.
-- param: metric = '' -- start of a metric's name (dataset_entropy, infonce, prompt_entropy); all when empty
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = '' -- a condition; all when empty
SELECT run, model, data, condition, site, pooling, metric, "group", layer,
       CASE WHEN layer <= final_layer THEN 100.0 * layer / greatest(final_layer, 1) END AS depth, value, low, high, n
FROM results
JOIN (SELECT run, model, final_layer FROM runs) USING (run)
WHERE analysis = 'quality' AND other_layer IS NULL AND layer IS NOT NULL
  AND starts_with(metric, $metric) AND starts_with(run, $run) AND ($condition = '' OR condition = $condition)
ORDER BY run, data, condition, site, pooling, metric, "group" NULLS FIRST, layer
