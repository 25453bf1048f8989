-- title: Class balance
-- about: How many rows of a data set have each value of a category or boolean, by split; a row with several values
-- about: counts once for each.
-- none: no row has a label of kind category or boolean: `layercache extract --label NAME:category` declares one
-- param: run = '' -- start of a run's id; all runs when empty
-- param: label = '' -- a label; all when empty
WITH found AS (
    SELECT run, data, name AS label, split, row,
           unnest(CASE kind WHEN 'boolean' THEN [CAST(CAST(number AS BOOLEAN) AS VARCHAR)]
                            ELSE string_split(text, chr(10)) END) AS value
    FROM labels
    LEFT JOIN (SELECT run, data, row, split FROM rows) USING (run, data, row)
    WHERE kind IN ('category', 'boolean') AND starts_with(run, $run) AND ($label = '' OR name = $label)
),
totals AS (
    SELECT run, data, label, split, count(DISTINCT row) AS total FROM found GROUP BY ALL
)
SELECT f.run, f.data, f.label, f.split, f.value, count(*) AS n, count(*) / any_value(t.total) AS share
FROM found AS f
JOIN totals AS t
  ON (t.run, t.data, t.label) = (f.run, f.data, f.label) AND t.split IS NOT DISTINCT FROM f.split
GROUP BY ALL
ORDER BY f.run, f.data, f.label, f.split, n DESC, f.value
