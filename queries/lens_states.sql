-- For reading stored states with the head kept beside the run: those of a layer between two sample ids; keys as in lens_places.
SELECT concat(sample_id, ' ', lpad(CAST(position AS VARCHAR), 9, '0')) AS key, vector
FROM hidden
WHERE
    run = $run AND condition = $condition AND site = 'resid' AND pooling = $pooling AND layer = $layer
    AND sample_id BETWEEN $low AND $high
    AND ($ids IS NULL OR sample_id IN (SELECT unnest($ids)))
