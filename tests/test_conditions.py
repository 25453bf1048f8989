"""Names of conditions: what is read, what is refused, and how a name says its parameters."""

import hashlib
import json

import pytest

from layercache import conditions
from layercache.conditions import Condition, Settings
from layercache.errors import RecipeError
from layercache.recipe import ExtractSpec, validate

SPANS = ["prompt", "question", "question_long", "sub-ject", "patch-x", "x", "answer"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clean", Condition("clean")),
        ("answer-only", Condition("answer-only")),
        ("knockout-question", Condition("knockout", "question")),
        ("knockout-question_long", Condition("knockout", "question_long")),
        ("knockout-question-layers-2-3", Condition("knockout", "question", (2, 3))),
        ("control-sub-ject-layers-1-1", Condition("control", "sub-ject", (1, 1))),
        ("control-question-0a1b2c3d", Condition("control", "question", digest="0a1b2c3d")),
        ("control-question-layers-1-2-0a1b2c3d", Condition("control", "question", (1, 2), digest="0a1b2c3d")),
        ("patch-question", Condition("patch", "question")),
        ("control-patch-question", Condition("control-patch", "question")),
        # Two readings: a patch of x and a control of patch-x. The longer kind is taken.
        ("control-patch-x", Condition("control-patch", "x")),
        ("knockout-patch-x", Condition("knockout", "patch-x")),
        ("augment-2", Condition("augment", number=2)),
        ("augment-2-12345678", Condition("augment", number=2, digest="12345678")),
        ("repeat-0.25", Condition("repeat", number=0.25)),
        ("repeat-1", Condition("repeat", number=1)),
        ("random-.5", Condition("random", number=0.5)),
        ("truncate-100", Condition("truncate", number=100)),
    ],
)
def test_names_are_read(name: str, expected: Condition) -> None:
    assert conditions.parse(name, SPANS) == expected


@pytest.mark.parametrize(
    ("name", "canonical"),
    [(" random-.50", "random-0.5"), ("repeat-1.0", "repeat-1"), ("truncate-100", "truncate-100")]
    + [(name, name) for name in ("control-patch-question", "knockout-sub-ject-layers-2-10", "augment-3-00000000")],
)
def test_a_condition_has_one_name(name: str, canonical: str) -> None:
    found = conditions.parse(name, SPANS)
    assert found.name == canonical
    assert conditions.parse(canonical, SPANS) == found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("knokout-question", "did you mean knockout-SPAN"),
        ("knockout", "mean knockout-SPAN"),
        ("knockout-", "knockout-SPAN"),
        ("knockout-questoin", "did you mean knockout-question"),
        ("knockout-question-layers-3-2", "the first comes first"),
        ("knockout-question-layers-0-2", "counted from 1"),
        ("patch-question-layers-1-2", "no span"),
        ("knockout-exact_answer", "--generate-answer makes the spans answer and exact_answer"),
        ("knockout-subject-layers-1-2", r"--span subject@FIELD makes one of a column's text in a field"),
        ("knockout-nothing", "there are answer, patch-x, prompt, question"),
        ("repeat-0", "a probability above 0"),
        ("repeat-1.5", "1.5 is no probability: write repeat-0.015"),
        ("repeat-x", "a probability above 0, up to 1: write repeat-0.25"),
        ("random-25%", "'random-25%': random- is followed by a probability above 0, up to 1: write random-0.25"),
        ("random-0,3", "write random-0.3"),
        ("truncate-500 tokens", "write truncate-500"),
        ("augment-1.5", "write augment-1"),
        ("random-0.0000001", "a probability"),
        ("augment-0", "a whole number from 1"),
        ("truncate-0.5", "a whole number"),
        ("truncate", "a whole number"),
        ("answer-only-2", "unknown condition"),
        ("", "names a folder"),
        ("knockout-a/b", "names a folder"),
        ("knockout-question#2", "renamed"),
        ("knockout-" + "x" * 100, "at most 100"),
    ],
)
def test_what_is_no_condition_is_refused(name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        conditions.parse(name, SPANS)


def test_a_hash_ends_the_name_only_where_a_parameter_is_not_at_its_default() -> None:
    control = conditions.parse("control-question", SPANS)
    assert conditions.with_settings(control, Settings()).name == "control-question"
    other = conditions.with_settings(control, Settings(seed=3))
    value = {"kind": "control", "span": "question", "layers": None, "seed": 3, "control_from": "prompt"}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert other.name == "control-question-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    assert conditions.parameters(other, Settings(seed=3)) == value
    assert conditions.with_settings(other, Settings(seed=3)) == other
    with pytest.raises(RecipeError, match="leave out the hash"):
        conditions.with_settings(other, Settings(seed=4))
    with pytest.raises(RecipeError, match="leave out the hash"):
        conditions.with_settings(other, Settings())


@pytest.mark.parametrize("name", ["knockout-question", "answer-only", "truncate-4"])
def test_settings_that_change_nothing_are_not_in_the_name(name: str) -> None:
    found = conditions.with_settings(conditions.parse(name, SPANS), Settings(3, "question", 0.5))
    assert found.name == name


def test_every_setting_that_is_used_is_in_the_name() -> None:
    settings = [Settings(), Settings(seed=1), Settings(control_from="question"), Settings(augment_rate=0.5)]
    kinds = {"control-question": 3, "patch-question": 2, "augment-1": 3, "random-0.5": 2, "knockout-question": 1}
    for name, distinct in kinds.items():
        found = {conditions.with_settings(conditions.parse(name, SPANS), one).name for one in settings}
        assert len(found) == distinct, name


def test_a_recipe_lists_its_conditions() -> None:
    spec = ExtractSpec(conditions=["clean", "random-.5", "random-0.50", "augment-1", "knockout-q"], augment=2)
    assert spec.condition_names() == ["random-.5", "random-0.50", "augment-1", "knockout-q", "augment-2"]
    assert ExtractSpec().condition_names() == []
    with pytest.raises(RecipeError, match="did you mean knockout-SPAN"):
        validate(ExtractSpec, {"conditions": ["nockout-question"]}, "here")
