"""Recipes: what is read, overridden and refused."""

from pathlib import Path

import pytest

from layercache import recipe, resources
from layercache.errors import RecipeError
from layercache.outputs import choices_hash
from layercache.training_steps import training_step

MINIMAL = 'models = "demo"\n[data]\nsource = "demo:movies"\n'


def _recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", resources.names("pipelines"))
def test_every_shipped_recipe_is_valid(name: str) -> None:
    study = recipe.load(name)
    assert study.name == name
    assert study.title


def test_defaults_and_the_name_from_the_file(tmp_path: Path) -> None:
    study = recipe.load(_recipe(tmp_path, MINIMAL))
    assert study.name == "study"
    assert [str(output) for output in study.extract.outputs()] == [
        "hidden:resid:mean@prompt",
        "hidden:resid:last@prompt",
        "lens:last@prompt:top10",
    ]


def test_settings_override_lists_tables_and_entries(tmp_path: Path) -> None:
    study = recipe.load(
        _recipe(tmp_path, MINIMAL),
        [
            "models=a,./b",
            "data.source=x=y.csv",
            'data.0.template="{t}"',
            "extract.pooling=mean,last@t",
            "extract.layers=0,3",
        ],
    )
    assert [model.model for model in study.models] == ["a", "./b"]
    assert study.data[0].source == "x=y.csv"
    assert study.data[0].template == "{t}"
    assert study.extract.pooling == ["mean@prompt", "last@t"]
    assert study.extract.layers == [0, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["nonsense"], "is not KEY=VALUE"),
        (['data.template="{a'], "opens like TOML and is not"),
        (["extract.poolin=mean"], "extract.poolin: unknown key"),
        (["extract.pooling=middle"], "unknown pooling 'middle'"),
        (["extract.lens=mean"], "unknown lens position 'mean'"),
        (["extract.sites=attention"], "unknown site 'attention'"),
        (["extract.precision=8"], "extract.precision"),
        (["data.labels=rating"], "needs a kind"),
        (["data.3.source=x"], "there are only 1 entries"),
        (["name=../x"], "name"),
        (["models=[]"], "models"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe.load(_recipe(tmp_path, MINIMAL), settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = [", "cannot be read as TOML"),
        ('models = "a"', "data"),
        (MINIMAL + '[[analyze]]\nkind = "x"', "analyze.0"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe.load(_recipe(tmp_path, text))


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'no-such'.*demo"):
        recipe.load("no-such")


def test_two_entries_must_be_named_by_number(tmp_path: Path) -> None:
    two = 'models = "demo"\n[[data]]\nsource = "a.csv"\n[[data]]\nsource = "b.csv"\n'
    for key in ("source", "limit"):
        with pytest.raises(
            RecipeError, match=rf"there are 2 entries, name one by number: data\.0\.{key} to data\.1\.{key}"
        ):
            recipe.load(_recipe(tmp_path, two), [f"data.{key}=1"])
    assert recipe.load(_recipe(tmp_path, two), ["data.1.limit=3"]).data[1].limit == 3


@pytest.mark.parametrize("value", ['"{a}\n{b}"', '"{a}\\n{b}"', "{a}\n{b}"])
def test_a_template_may_hold_a_line_break_however_it_is_written(tmp_path: Path, value: str) -> None:
    assert recipe.load(_recipe(tmp_path, MINIMAL), [f"data.template={value}"]).data[0].template == "{a}\n{b}"


def test_flags_of_answers_and_statistics_keep_their_text() -> None:
    from layercache.cli.extract import EXTRACT_OPTIONS, recipe_from

    given = {"models": ("demo",), "source": "demo:movies", "choices": (" yes, sir", " no"), "stats": "norm, sinks"}
    study = recipe_from(None, (), {**given, "pooling": "mean-sinks,token@Title", "sink_cutoff": 8.0})
    assert study.extract.choices == [" yes, sir", " no"]
    assert study.extract.stats == ["norm", "sinks"]
    assert [str(output) for output in study.extract.outputs()] == [
        "hidden:resid:mean-sinks8@prompt",
        "hidden:resid:token@Title",
        f"lens:last@prompt:top10:choices-{choices_hash([' no', ' yes, sir'])}",
        "stats:norm",
        "stats:sinks8",
    ]
    assert set(EXTRACT_OPTIONS) <= set(recipe.ExtractSpec.model_fields)
    table = study.model_dump(mode="json")
    recipe.override(table, 'extract.choices=[" a, b", " c"]')
    assert recipe.build(table).extract.choices == [" a, b", " c"]


def test_every_revision_is_a_model_of_its_own(tmp_path: Path) -> None:
    text = MINIMAL.replace(
        '"demo"', '["demo", {model = "org/pythia", dtype = "float32", revisions = ["step1", "step512", "step1"]}]'
    )
    study = recipe.load(_recipe(tmp_path, text))
    assert [(one.model, one.revision, one.dtype) for one in study.models] == [
        ("demo", None, None),
        ("org/pythia", "step1", "float32"),
        ("org/pythia", "step512", "float32"),
    ]
    assert recipe.build(study.model_dump(mode="json")).models == study.models
    with pytest.raises(RecipeError, match="give revision or revisions, not both"):
        recipe.build(
            {"name": "x", "models": {"model": "a", "revision": "v1", "revisions": "v2"}, "data": {"source": "b"}}
        )


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("pythia-70m-step512", ("pythia-70m", 512)),
        ("pythia-70m-step512-int8", ("pythia-70m-int8", 512)),
        ("OLMo-1B-step1000-tokens4B", ("OLMo-1B", 1000)),
        ("my-run-checkpoint-500+lora", ("my-run+lora", 500)),
        ("checkpoint-500", ("model", 500)),
        ("demo", ("demo", 4070)),
        ("demo-early", ("demo", 678)),
        ("demo-mamba2", None),
        ("gpt2", None),
        ("two-step-model", None),
    ],
)
def test_the_training_step_that_a_name_says(name: str, step: tuple[str, int] | None) -> None:
    assert training_step(name) == step
