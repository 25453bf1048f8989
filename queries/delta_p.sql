-- title: ΔP and flips against the control
-- about: What a changed pass does to a probe of truthfulness, over all samples that it and its control have: ΔP in
-- about: percentage points, the share of predictions that flip, and both minus the control's (paired; none for a
-- about: control itself), each followed by the ends of its own 95 % interval, _low and _high. The study's figure by
-- about: outcome is delta_p_by_outcome.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = '' -- start of a condition's name (knockout-subject); all when empty
SELECT run, data, label, site, pooling, condition, layer,
       any_value(value) FILTER (metric = 'delta_p') AS delta_p,
       any_value(low) FILTER (metric = 'delta_p') AS delta_p_low,
       any_value(high) FILTER (metric = 'delta_p') AS delta_p_high,
       any_value(value) FILTER (metric = 'delta_p_minus_control') AS delta_p_minus_control,
       any_value(low) FILTER (metric = 'delta_p_minus_control') AS delta_p_minus_control_low,
       any_value(high) FILTER (metric = 'delta_p_minus_control') AS delta_p_minus_control_high,
       any_value(value) FILTER (metric = 'flip_rate') AS flip_rate,
       any_value(low) FILTER (metric = 'flip_rate') AS flip_rate_low,
       any_value(high) FILTER (metric = 'flip_rate') AS flip_rate_high,
       any_value(value) FILTER (metric = 'flip_rate_minus_control') AS flip_rate_minus_control,
       any_value(low) FILTER (metric = 'flip_rate_minus_control') AS flip_rate_minus_control_low,
       any_value(high) FILTER (metric = 'flip_rate_minus_control') AS flip_rate_minus_control_high,
       any_value(n) AS n
FROM results
WHERE analysis = 'delta_p' AND "group" = 'all' AND starts_with(run, $run) AND starts_with(condition, $condition)
  AND metric IN ('delta_p', 'flip_rate', 'delta_p_minus_control', 'flip_rate_minus_control')
GROUP BY ALL
ORDER BY run, data, label, site, pooling, condition, layer
