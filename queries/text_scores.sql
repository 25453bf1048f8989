-- title: Scores of generated text by layer
-- about: Quality of what every layer wrote, what quantisation changes (…_minus_other), and how well the lens tells right
-- about: answers from wrong ones (auc_…), each with its 95 % interval.
-- param: run = '' -- start of a run's id; all runs when empty
-- param: metric = '' -- bleu, rouge_l, exact_match, bleu_minus_other, auc_entropy, …; all when empty
-- param: output = '' -- start of the generated output's name; all when empty
SELECT run, data, label, "group" AS output, metric, layer, value, low, high, n, other_run
FROM results
WHERE analysis = 'text' AND layer IS NOT NULL AND starts_with(run, $run) AND ($metric = '' OR metric = $metric)
  AND starts_with("group", $output)
ORDER BY ALL
