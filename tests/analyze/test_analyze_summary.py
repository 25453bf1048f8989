import pyarrow as pa

from layercache.analyze import tables
from layercache.analyze.summary import summarise


def key(run: str, **further) -> dict:
    return {"run": run, "data": "films", "analysis": "probe", "condition": "clean", **further}


def probe_rows(run: str, pooling: str = "mean@prompt", best: int = 1) -> list[dict]:
    here = key(run, label="rating")
    rows = tables.row({**here, "group": "mean"}, "r2", 0.0, 9, 0.0, 0.0)
    rows += tables.row({**here, "group": "tf-idf"}, "r2", 0.25, 9, 0.2, 0.3)
    for layer in range(3):
        at = {**here, "site": "resid", "pooling": pooling, "layer": layer}
        rows += tables.row(at, "r2", 0.5 if layer == best else 0.1, 9, 0.05, 0.55)
        rows += tables.row(at, "mse", 1234.5 + layer, 9, None, None)
        rows += tables.row(at, "best_layer_share", 0.8 if layer == best else 0.1, 9)
        rows += tables.row({**at, "group": "shuffled"}, "r2", -0.01 * layer, 9, -0.1, 0.1)
    return rows


def text_of(rows: list[dict]) -> str:
    return summarise(tables.results(rows))


def test_probes():
    text = text_of(probe_rows("gpt2-0123abcd") + probe_rows("bert-base-9876fedc", best=2))
    assert text.splitlines() == [
        "films, rating: r2 [95 % interval] by layer",
        "layer                  gpt2 mean@prompt             bert-base mean@prompt",
        "0                      0.100 [0.050, 0.550]         0.100 [0.050, 0.550]",
        "1                     *0.500 [0.050, 0.550] (80%)   0.100 [0.050, 0.550]",
        "2                      0.100 [0.050, 0.550]        *0.500 [0.050, 0.550] (80%)",
        "mean                   0.000 [0.000, 0.000]         0.000 [0.000, 0.000]",
        "tf-idf                 0.250 [0.200, 0.300]         0.250 [0.200, 0.300]",
        "shuffled, best layer   -0.010 [-0.100, 0.100]       -0.020 [-0.100, 0.100]",
        "mse, best layer        1236                         1236",
        "spearman, best layer   -                            -",
        "",
        "* best layer (and the share of resamples in which it is best); none where layers tie or its interval does not clear"
        " majority or mean",
    ]


def starred(values: list[float], low: float | None, baseline: float | None = 0.0) -> list[str]:
    """Return the layers that are marked, of given scores whose intervals begin at `low`."""
    here = key("gpt2-0123abcd", label="rating")
    rows = [] if baseline is None else tables.row({**here, "group": "mean"}, "r2", baseline, 9, baseline, baseline)
    for layer, value in enumerate(values):
        at = {**here, "site": "resid", "pooling": "mean@prompt", "layer": layer}
        rows += tables.row(at, "r2", value, 9, low, None if low is None else 1.0)
        rows += tables.row(at, "best_layer_share", 0.5, 9)
    marked = [line for line in text_of(rows).splitlines()[:-1] if "*" in line]
    assert all("(50%)" in line for line in marked)
    assert text_of(rows).count("%)") == len(marked), "a share without a star"
    return [line.split()[0] for line in marked]


def test_no_star_where_layers_tie():
    assert starred([0.1, 0.3331, 0.3338], 0.05) == ["2"]
    assert starred([0.1, 0.3331, 0.3334], 0.05) == [], "they are printed the same"
    assert starred([0.3, 0.3, 0.2], 0.05) == []


def test_no_star_where_the_best_layer_does_not_clear_its_baseline():
    assert starred([0.1, 0.3], 0.01) == ["1"]
    assert starred([0.1, 0.3], 0.0) == []
    assert starred([-0.006, -0.1], -0.015) == []
    assert starred([0.1, 0.3], 0.05, baseline=0.2) == []
    assert starred([0.1, 0.3], None, baseline=0.2) == ["1"]
    assert starred([0.1, 0.3], None, baseline=0.3) == []
    assert starred([-0.2, -0.1], -0.3, baseline=None) == ["1"]


def test_runs_of_one_model_keep_their_hash():
    text = text_of(probe_rows("gpt2-0123abcd") + probe_rows("gpt2-9876fedc"))
    assert "gpt2-0123abcd mean@prompt" in text
    assert "gpt2-9876fedc mean@prompt" in text


def test_many_columns_go_below_each_other():
    rows = [row for index in range(6) for row in probe_rows(f"m{index}-0123abcd")]
    heads = [line for line in text_of(rows).splitlines() if line.startswith("layer ")]
    assert [head.count("mean@prompt") for head in heads] == [4, 2]


def test_lens():
    rows = []
    for layer in range(2):
        at = key("gpt2-0123abcd", analysis="entropy", position="last@prompt", layer=layer)
        rows += tables.row(at, "entropy", 5.0 - layer, 9, 4.0, 6.0)
        rows += tables.row(at, "agrees_with_final", 0.5 * layer, 9)
    depth = key("gpt2-0123abcd", analysis="entropy", position="last@prompt")
    rows += tables.row(depth, "prediction_depth", 0.75, 9, 0.5, 1.0)
    lines = text_of(rows).splitlines()
    assert lines[0] == "films, lens at last@prompt: [95 % interval] by layer"
    assert lines[2].split("  ")[0] == "0"
    assert "5.000 [4.000, 6.000]" in lines[2]
    assert lines[-1].startswith("prediction depth")
    assert "0.750 [0.500, 1.000]" in lines[-1]


def test_text():
    rows = []
    at = key("demo-0123abcd", analysis="text", label="answers", group="generation:1a2b")
    for layer in range(2):
        here = {**at, "layer": layer}
        for metric, value in (("bleu", 10.0), ("rouge_1", 0.5), ("auc_entropy", 0.75)):
            rows += tables.row(here, metric, value + layer, 9, value, value + layer)
        for metric in ("bleu", "rouge_1"):
            rows += tables.row({**here, "other_run": "demo-9876fedc"}, f"{metric}_minus_other", -layer, 9, -1.5, 0.5)
    assert text_of(rows + tables.row(at, "left_out", 3, 12)).splitlines() == [
        "films, demo, generation:1a2b: scores of text by layer [95 % interval]",
        "layer   bleu",
        "0       10.000 [10.000, 10.000]",
        "1       11.000 [10.000, 11.000]",
        "",
        "films, demo, generation:1a2b: further scores, whose intervals are in the table results",
        "layer   rouge_1",
        "0       0.500",
        "1       1.500",
        "",
        "films, demo, generation:1a2b: what quantisation changes [95 % interval]",
        "layer   bleu",
        "0       0.000 [-1.500, 0.500]",
        "1       -1.000 [-1.500, 0.500]",
        "",
        "films, demo, generation:1a2b: AUC of right answers by what the lens says, 0.5 for nothing [95 % interval]",
        "layer   entropy",
        "0       0.750 [0.750, 0.750]",
        "1       1.750 [0.750, 1.750]",
    ]


def test_nothing():
    assert summarise(tables.results([])) == ""
    assert isinstance(tables.results([]), pa.Table)


def test_an_undefined_value_has_no_row():
    assert tables.row(key("a"), "auc", float("nan"), 3) == []


def grid_rows(seeds: int) -> list[dict]:
    here = {**key("demo-0123abcd", label="rating"), "analysis": "compare", "condition": None}
    low, high = (0.01, 0.05) if seeds > 1 else (None, None)
    rows = tables.row({**here, "group": "r"}, "effect", 0.03, seeds, low, high)
    for group, share in (("r", 0.9), ("seed", 0.1)):
        rows += tables.row({**here, "group": group}, "variance_share", share, seeds)
    return rows


def test_a_grid_of_several_seeds_has_shares_of_variance():
    assert text_of(grid_rows(2)).splitlines() == [
        "films, rating, demo: what matters in the grid [95 % interval over seeds]",
        "effect of   accuracy               share of variance   F-test p",
        "r           0.030 [0.010, 0.050]   0.900               -",
        "seed        -                      0.100               -",
    ]


def test_a_grid_of_one_seed_says_why_it_has_none():
    assert text_of(grid_rows(1)).splitlines() == [
        "films, rating, demo: what matters in the grid",
        "effect of   accuracy",
        "r           0.030",
        "one seed: without a second, nothing says what is chance, so no interval, share of variance or F-test",
    ]
