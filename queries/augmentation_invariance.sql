-- title: What stays of a state when the prompt's spelling changes
-- about: InfoNCE (nats, less is more alike), LiDAR and DiME (nats) of views of every prompt, each beside the same number of
-- about: views paired at random and, for InfoNCE, beside ln of the samples, where states tell no prompt from another.
-- none: no run was extracted with two views of every prompt: `layercache extract --augment 2`, then
-- none: `layercache analyze quality`
-- param: metric = '' -- infonce, lidar or dime; all when empty
-- param: run = '' -- start of a run's id; all runs when empty
SELECT run, data, condition, site, pooling, metric, layer,
       max(value) FILTER ("group" IS NULL) AS value,
       max(low) FILTER ("group" IS NULL) AS low,
       max(high) FILTER ("group" IS NULL) AS high,
       max(value) FILTER ("group" = 'shuffled') AS shuffled,
       max(value) FILTER ("group" = 'chance') AS chance,
       max(n) AS n
FROM results
WHERE analysis = 'quality' AND metric IN ('infonce', 'lidar', 'dime') AND ($metric = '' OR metric = $metric)
  AND starts_with(run, $run)
GROUP BY run, data, condition, site, pooling, metric, layer
ORDER BY run, data, condition, site, pooling, metric, layer
