-- title: How alike every two layers are
-- about: CKA or the share of common nearest neighbours, of all layers of a run with one another and, where runs of one data
-- about: set were compared, with the other run's. A pair within a run is there both ways round.
-- none: layers were not compared: `layercache analyze quality --metrics cka,mutual_knn`
-- param: metric = 'cka' -- cka, cka_biased or mutual_knn
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = 'clean' -- the condition
WITH pairs AS (
    SELECT run, other_run, data, site, pooling, layer, other_layer, value, low, high, n
    FROM results
    WHERE analysis = 'quality' AND metric = $metric AND condition = $condition AND other_layer IS NOT NULL
      AND starts_with(run, $run)
)
SELECT * FROM pairs
UNION ALL
SELECT * REPLACE (other_layer AS layer, layer AS other_layer) FROM pairs WHERE other_run IS NULL
ORDER BY run, other_run NULLS FIRST, data, site, pooling, layer, other_layer
