"""Forward passes are counted once: what an extraction says is what the store and the page say."""

import json
from pathlib import Path

from layercache import listing, recipe, study
from layercache.progress import Progress
from layercache.report import overview
from layercache.store import reader


def counted(asked: recipe.Recipe, store: Path) -> tuple[int, int, str]:
    """Extract; return the passes that were said, those that the store holds, and the page's words about it."""
    said = sum(one.forward_passes for one in study.extract(asked, store, Progress()))
    held = reader.open(store)
    page = " ".join(part for part in overview.overview(held).parts if isinstance(part, str))
    return said, sum(sum(listing.forward_passes(held, run).values()) for run in held.runs()), page


def test_neither_prompts_that_are_answered_nor_samples_left_out_are_passes(tmp_path: Path) -> None:
    films = ["Letter of Kelyangor", "Bexjuntev's Island", "Mirror of Brizulrin", "Lantern of Zullumgam"]
    rows = [{"question": f"In which year did {film} come out?", "subject": film} for film in films]
    # A subject that leaves the control too few other tokens.
    rows.append(
        {"question": "The Hidden Vinmorjas Garden of Wexshapel?", "subject": "Hidden Vinmorjas Garden of Wexshapel"}
    )
    source = tmp_path / "qa.jsonl"
    source.write_text("".join(json.dumps({**row, "golden_answers": ["1936"]}) + "\n" for row in rows))
    changed = [f"data.0.source={source}", "data.0.labels=[]", "data.0.group_by=subject"]
    changed += ['extract.conditions=["knockout-subject", "control-subject"]']
    said, held, page = counted(recipe.load("truth_pathways", changed), tmp_path / "s")
    store = reader.open(tmp_path / "s")
    (run,) = store.runs()
    assert listing.forward_passes(store, run) == {"clean": 5, "control-subject": 4, "knockout-subject": 5}
    assert said == held == 14
    assert "<dt>forward passes</dt><dd>14</dd>" in page
    # What was left out was made by no device, at no time.
    assert "<td class=brief>–</td>" not in page.split("devices and versions")[1]
    when = page.split("what it cost")[1].split("templates")[0]
    assert when.count(str(store.shards(run)[0].provenance["created"])[:10]) == 2


def test_states_and_texts_of_a_sample_are_one_pass(tmp_path: Path) -> None:
    asked = recipe.load(
        "layer_generation", ["models=demo", "data.0.limit=3", "data.1.limit=2", "extract.max_new_tokens=2"]
    )
    said, held, page = counted(asked, tmp_path / "s")
    assert said == held == 5
    assert "<dt>forward passes</dt><dd>5</dd>" in page
