-- title: Which layer to take without labels
-- about: For each rule that picks a layer (the largest or smallest value of a metric, the last layer, a random one): what
-- about: the probe gains there, as a share of what it gains at the best layer, over labels, poolings and runs.
-- about: Beside it the metric's rank correlation with the probe over the layers. Needs `layercache analyze compare`.
-- none: no label is known at any layer, so there is no best layer to look for
-- param: data = '' -- a data set; all when empty
WITH found AS (
    SELECT * FROM results WHERE analysis = 'compare' AND ($data = '' OR data = $data)
),
picks AS (
    SELECT data, "group" AS rule, avg(value) AS mean_share, min(value) AS worst_share, count(*) AS cases
    FROM found WHERE metric = 'picked_share'
    GROUP BY ALL
),
correlations AS (
    SELECT data, "group" AS source, avg(value) AS mean_spearman, min(value) AS least_spearman, max(value) AS most_spearman
    FROM found WHERE metric = 'spearman_over_layers'
    GROUP BY ALL
)
SELECT picks.*, mean_spearman, least_spearman, most_spearman
FROM picks
LEFT JOIN correlations
    ON correlations.data = picks.data AND correlations.source = regexp_replace(picks.rule, ' (max|min)$', '')
ORDER BY data, mean_share DESC, rule
