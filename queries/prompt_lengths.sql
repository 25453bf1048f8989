-- title: Prompt lengths
-- about: Tokens of the prompts of every run, special tokens included, and how many prompts were cut.
-- param: run = '' -- start of a run's id; all runs when empty
SELECT run, condition, count(*) AS samples, min(n_tokens) AS shortest, median(n_tokens) AS median,
       quantile_cont(n_tokens, 0.95) AS percentile_95, max(n_tokens) AS longest, sum(n_tokens) AS tokens,
       count(*) FILTER (n_truncated > 0) AS cut
FROM samples
WHERE starts_with(run, $run)
GROUP BY run, condition
ORDER BY run, condition
