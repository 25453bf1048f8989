-- title: What is in this store
-- about: Every run: its model, data sets, samples, conditions, layers, and size on disk.
WITH sizes AS (
    SELECT run, string_agg(DISTINCT condition, ', ' ORDER BY condition) AS conditions, sum(bytes) AS bytes
    FROM shards GROUP BY run
),
counts AS (
    SELECT run, count(DISTINCT sample_id) AS samples FROM samples GROUP BY run
),
sets AS (
    SELECT run, string_agg(DISTINCT data, ', ' ORDER BY data) AS data, count(*) AS rows FROM rows GROUP BY run
)
SELECT run, model, data, rows, coalesce(samples, 0) AS samples, conditions, n_layers AS layers, width,
       coalesce(bytes, 0) AS bytes
FROM runs
LEFT JOIN sets USING (run)
LEFT JOIN counts USING (run)
LEFT JOIN sizes USING (run)
ORDER BY run
