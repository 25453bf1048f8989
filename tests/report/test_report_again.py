"""Commands that make a part of the report again: they are read back by the command line into the settings they stand for."""

import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from layercache import cli, recipe, study
from layercache.report import again, plots
from layercache.store import reader, recipes, results
from layercache.store.schema import RESULTS, arrow_schema

SETTINGS: dict[str, dict[str, Any]] = {
    "probe": {"labels": ["it's", "b; rm -rf $HOME"], "folds": 7, "pooling": ["last@prompt"], "data": ["my data"]},
    "text": {"metrics": ["bleu", "chrf"], "reference": ["answer"], "correct_above": 0.25},
    "quality": {"metrics": ["cka"], "alpha": 2.0, "max_samples": 17, "cka": "both"},
    "delta_p": {"labels": ["correct"], "anchor": "per-layer", "anchor_layer": 3, "noise": 0},
    "probe_depth": {"measures": ["mdl"], "control_by": "genre"},
    "entropy": {"positions": ["last@prompt"], "seed": 3, "bootstrap": 0},
    "choices": {"group_by": "title"},
    "compare": {"metrics": ["curvature"], "pooling": ["mean@prompt"]},
}


def kept(path: Path, kind: str, spec: dict[str, Any]) -> None:
    empty = arrow_schema(RESULTS).empty_table()
    path.mkdir(exist_ok=True)
    assert results.save(path, kind, spec, ["test"], results.Outcome(empty)) is not None


def _command() -> click.Command:
    found = cli.cli.get_command(click.Context(cli.cli), "analyze")
    assert found is not None
    return found


def read_back(line: str, path: Path) -> list[Any]:
    """Return the specs that a command would run."""
    words = shlex.split(line, comments=True)
    assert words[:2] == ["layercache", "analyze"]
    top = click.Context(cli.cli, info_name="layercache", **cli.cli.context_settings)
    with _command().make_context("analyze", words[2:], parent=top) as context:
        given = {key: value for key, value in context.params.items() if value is not None}
    kinds = given.pop("kinds")
    settings = {name for spec in recipe.ANALYSES.values() for name in spec.model_fields}
    overrides = {key: value for key, value in given.items() if key in settings}
    return list(study.specs_to_run(path, kinds, overrides))


@pytest.mark.parametrize("kind", list(recipe.ANALYSES))
def test_a_command_stands_for_the_settings_that_were_kept(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "my store"
    spec = recipe.validate(recipe.ANALYSES[kind], SETTINGS[kind], where=kind)
    kept(path, kind, spec.model_dump(mode="json"))
    line = again.analysis(reader.open(path), [kind])[0]
    assert read_back(line, path) == [spec]
    assert shlex.split(line, comments=True)[-2:] == ["--store", "my store"]


def test_what_a_recipe_describes_needs_no_options(tmp_path: Path) -> None:
    path = tmp_path / "s"
    spec = recipe.validate(recipe.ProbeSpec, SETTINGS["probe"], where="probe").model_dump(mode="json")
    kept(path, "probe", spec)
    study_of = {"name": "films", "models": [{"model": "demo"}], "data": [{"source": "demo:movies"}]}
    recipes.save(path, {**study_of, "analyze": [spec]})
    lines = again.analysis(reader.open(path), ["probe", "entropy"], ["probe"])
    assert lines[:2] == ["layercache analyze probe --store s", "layercache plot probe -o probe.svg --store s"]
    assert lines[2].startswith("layercache sql \"SELECT * FROM results WHERE analysis IN ('probe', 'entropy')\"")


def test_what_no_option_can_say_is_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "s"
    kept(path, "entropy", {"kind": "entropy", "quantiles": [0.25, 0.5]})
    line = again.analysis(reader.open(path), ["entropy"])[0]
    assert line == "layercache analyze entropy --store s  # with quantiles = [0.25, 0.5] in a recipe"
    assert again.analysis(reader.open(path), ["probe"]) == []


def test_every_setting_has_an_option_or_is_known_to_have_none() -> None:
    options = {parameter.name for parameter in _command().params}
    settings = {name for spec in recipe.ANALYSES.values() for name in spec.model_fields} - {"kind"}
    assert settings - options == again.WITHOUT_OPTION


def test_every_plot_that_is_named_can_be_drawn() -> None:
    named = {plot for _, plots in again.PARTS.values() for plot in plots}
    assert named <= set(plots.PLOTS)
    assert set(plots.PLOTS) - named == {"tokens", "lens"}
    assert {kind for kinds, _ in again.PARTS.values() for kind in kinds} == set(recipe.ANALYSES)
