-- title: Entropy by layer
-- about: The logit lens, averaged over samples: entropy in nats, the followed token's log-probability,
-- about: distance from the model's own prediction, and how often the most probable token is already the model's.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = 'clean' -- the condition
SELECT run, output, layer, name,
       avg(entropy) AS entropy,
       median(entropy) AS median_entropy,
       avg(target_logprob) AS target_logprob,
       avg(kl_to_final) AS kl_to_final,
       avg(CAST(agrees_with_final AS INTEGER)) AS agreement,
       count(*) AS n
FROM lens
LEFT JOIN layers USING (run, layer)
WHERE starts_with(run, $run) AND condition = $condition
GROUP BY run, output, layer, name
ORDER BY run, output, layer
