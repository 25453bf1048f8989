-- title: Norms by layer
-- about: How long the states are at every layer; a few samples far above the median point to special tokens.
-- about: With a token pooling n counts tokens.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = 'clean' -- the condition
SELECT run, site, pooling, layer, name,
       avg(norm) AS mean, median(norm) AS median, min(norm) AS lowest, max(norm) AS highest, count(*) AS n
FROM (
    SELECT run, site, pooling, layer, norm(vector) AS norm
    FROM hidden
    WHERE starts_with(run, $run) AND condition = $condition
)
LEFT JOIN layers USING (run, layer)
GROUP BY run, site, pooling, layer, name
ORDER BY run, site, pooling, layer
