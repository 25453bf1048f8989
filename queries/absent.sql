-- title: What is missing, and why
-- about: How many samples have no value of an output, by reason (an empty span has no mean).
-- none: every sample has a value of every output, so nothing is missing
-- param: run = '' -- start of a run's id; all runs when empty
SELECT run, condition, gap.output, gap.reason, count(*) AS samples
FROM (SELECT run, condition, unnest(absent) AS gap FROM samples WHERE starts_with(run, $run))
GROUP BY ALL
ORDER BY ALL
