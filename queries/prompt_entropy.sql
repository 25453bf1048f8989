-- title: Prompt entropy, as a share of what it can be
-- about: Entropies of every prompt's tokens in nats, divided by ln N (its tokens), ln D (the width) or the smaller one.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = 'clean' -- the condition
-- param: by = 'min' -- n, d, min, or raw for nats
WITH sizes AS (
    -- Special tokens are no part of it; nor is what follows the prompt.
    SELECT run, condition, sample_id,
           least(n_tokens - n_special, list_filter(spans, lambda s: s.name = 'prompt')[1]."end"
                 - list_filter(spans, lambda s: s.name = 'prompt')[1].start) AS n
    FROM samples
),
shares AS (
    SELECT run, metric, layer, final_layer,
           CASE $by WHEN 'raw' THEN value
                    WHEN 'n' THEN value / ln(n - ends_with(metric, '-first')::INTEGER)
                    WHEN 'd' THEN value / ln(width)
                    WHEN 'min' THEN value / ln(least(n - ends_with(metric, '-first')::INTEGER, width))
           END AS share
    FROM token_stats
    JOIN sizes USING (run, condition, sample_id)
    JOIN runs USING (run)
    WHERE starts_with(run, $run) AND condition = $condition AND starts_with(metric, 'prompt_entropy')
)
SELECT run, metric, layer, name, CASE WHEN layer <= final_layer THEN 100.0 * layer / greatest(final_layer, 1) END AS depth,
       avg(share) AS mean, median(share) AS median,
       quantile_cont(share, 0.1) AS low_tenth, quantile_cont(share, 0.9) AS high_tenth,
       count(*) AS n
FROM shares
LEFT JOIN layers USING (run, layer)
GROUP BY run, metric, layer, name, final_layer
ORDER BY run, metric, layer
