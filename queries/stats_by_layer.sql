-- title: Statistics over tokens, by layer
-- about: Norms, curvature, entropies and the like, over samples; where the lowest and highest tenths are far apart
-- about: look at the samples themselves. n counts the samples that have the statistic at that layer.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = 'clean' -- the condition
-- param: metric = '' -- start of the statistic's name; all when empty
SELECT run, metric, layer, name,
       CASE WHEN layer <= final_layer THEN 100.0 * layer / greatest(final_layer, 1) END AS depth,
       avg(value) AS mean, median(value) AS median,
       quantile_cont(value, 0.1) AS low_tenth, quantile_cont(value, 0.9) AS high_tenth,
       count(*) AS n
FROM token_stats
JOIN runs USING (run)
LEFT JOIN layers USING (run, layer)
WHERE starts_with(run, $run) AND condition = $condition AND starts_with(metric, $metric)
GROUP BY run, metric, layer, name, final_layer
ORDER BY run, metric, layer
