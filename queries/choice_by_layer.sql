-- title: Which answer each layer favours
-- about: Of the answers that were scored (--choice): the share of samples in which each is the most probable at every
-- about: layer, and its mean log-probability in nats. With a label also the accuracy of the favoured answer: the share
-- about: of rows whose label is that answer, blanks around it and upper case apart. Samples that lack the score of an
-- about: answer are left out; of equal scores the answer first in the alphabet counts.
-- param: label = '' -- a label whose values are the answers; no accuracy when empty
-- param: score = 'logprob' -- logprob (the whole answer) or first_logprob (its first token)
-- param: run = '' -- start of a run's id; all runs when empty
-- param: condition = 'clean' -- the condition
WITH scores AS (
    SELECT run, output, layer, sample_id, choice, CASE $score WHEN 'first_logprob' THEN first_logprob ELSE logprob END AS score
    FROM choices
    WHERE starts_with(run, $run) AND condition = $condition
),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY run, output, layer, sample_id ORDER BY score DESC, choice) = 1 AS best
    FROM scores
    QUALIFY count(score) OVER (PARTITION BY run, output, layer, sample_id)
          = count(*) OVER (PARTITION BY run, output, layer, sample_id)
),
truths AS (
    SELECT run, data, sample_id,
           CASE kind WHEN 'boolean' THEN CAST(CAST(number AS BOOLEAN) AS VARCHAR) WHEN 'number' THEN CAST(number AS VARCHAR)
                     ELSE text END AS truth
    FROM labels
    WHERE name = $label
),
right_ones AS (
    SELECT run, output, layer, data, avg(CAST(lower(trim(choice)) = lower(trim(truth)) AS INTEGER)) AS accuracy,
           count(*) AS labelled
    FROM ranked
    JOIN truths USING (run, sample_id)
    WHERE best
    GROUP BY ALL
),
shares AS (
    SELECT run, output, layer, choice, avg(CAST(best AS INTEGER)) AS share, avg(score) AS mean_score, count(*) AS n
    FROM ranked
    GROUP BY ALL
)
SELECT run, output, data, layer, name, choice, share, mean_score, n, accuracy, labelled
FROM shares
LEFT JOIN right_ones USING (run, output, layer)
LEFT JOIN layers USING (run, layer)
ORDER BY run, output, data, layer, choice
