-- title: From which layer on the prediction stands
-- about: A sample's depth is the first layer from which the lens's most probable token is the model's own at every
-- about: later layer that is stored. How many samples have each depth, and what share has it or less.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = 'clean' -- the condition
WITH positions AS (
    SELECT run, output, sample_id, position, layer, agrees_with_final,
           max(layer) FILTER (NOT agrees_with_final) OVER (PARTITION BY run, output, sample_id, position) AS last_change
    FROM lens
    WHERE starts_with(run, $run) AND condition = $condition
),
depths AS (
    SELECT run, output, sample_id, position, min(layer) FILTER (layer > coalesce(last_change, -1)) AS depth
    FROM positions
    GROUP BY run, output, sample_id, position
),
counts AS (
    SELECT run, output, depth, count(*) AS n FROM depths GROUP BY run, output, depth
)
SELECT run, output, depth, n,
       n / sum(n) OVER (PARTITION BY run, output) AS share,
       sum(n) OVER (PARTITION BY run, output ORDER BY depth) / sum(n) OVER (PARTITION BY run, output) AS share_so_far
FROM counts
ORDER BY run, output, depth
