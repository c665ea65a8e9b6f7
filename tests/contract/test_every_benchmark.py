"""What every benchmark promises, run over the folder: the same numbers twice, figures from tables alone, nothing cut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.itemized import Resampling, Table
from letheon.data.encode import Encoder
from letheon.errors import BadInput
from letheon.methods import build, names
from letheon.settings import plain
from letheon.tiny.world import SMALL, write_world
from tests.audits.benchmarks.data import choices_file, muse_files, scorer, tofu_files
from tests.audits.benchmarks.own_tasks import own_tasks
from tests.audits.fakes import uniform_model
from tests.toys import llama, tokenizer

HOW = Resampling(resamples=1000)


def world(folder: Path) -> Path:
    write_world(folder, 0, SMALL)
    return folder


GIVEN: dict[str, Callable[[Path], dict[str, Any]]] = {
    "tofu": lambda path: {
        "data": tofu_files(path, forget=21, other=20),
        "split": "forget01",
        "longest": 24,
        "counted": "new",
    },
    "muse": lambda path: {"data": muse_files(path, questions=3, texts=4)},
    "wmdp": lambda path: {"data": choices_file(path / "c.jsonl"), "ask": "texts"},
    "people": lambda path: {"data": world(path), "limit": 30},
    "lm_eval": lambda path: {"tasks": ["own"], "include_path": own_tasks(path)},
}
"""A small copy of each benchmark's data, and the settings with it."""
NEEDS = {"lm_eval": pytest.mark.skipif(find_spec("lm_eval") is None, reason="pip install 'letheon[eval]'")}
ASKED = [pytest.param(name, marks=NEEDS.get(name, ())) for name in GIVEN]


def coder(window: int = 512) -> Encoder:
    return Encoder(tokenizer(), max_length=window)


def asked(name: str, path: Path, model: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    made = build("benchmark", {"name": name, **GIVEN[name](path)})
    posed = made.pose(made.read(), coder())
    asker = scorer(model, coder=coder())
    return made, posed, {key: made.measure(one, asker) for key, one in posed.items()}


def test_every_one_has_data_here() -> None:
    assert set(GIVEN) == set(names("benchmark"))


@pytest.mark.parametrize("name", ASKED)
def test_a_figure_comes_from_a_file_of_tables_and_is_the_same_twice(name: str, tmp_path: Path) -> None:
    for number, model in enumerate((llama(3, max_position_embeddings=512), uniform_model())):
        first, second = (asked(name, tmp_path / f"{number}{turn}", model) for turn in "ab")
        tables = {key: one.table.rounded() for key, one in first[2].items()}
        assert {key: one.table.rounded() for key, one in second[2].items()} == tables
        figures = first[0].figures(tables, None, HOW)
        written = json.loads(json.dumps({key: plain(table) for key, table in tables.items()}, allow_nan=False))
        assert first[0].figures({key: Table.of(one) for key, one in written.items()}, None, HOW) == figures
        assert len({one.name for one in figures}) == len(figures) > 3 or name == "wmdp"
        for one in figures:
            assert one.value is not None or one.note
            assert one.low is None or one.value is None or one.low - 1e-12 <= one.value <= one.high + 1e-12
            assert one.value is None or (math.isfinite(one.value) and one.n > 0)


@pytest.mark.parametrize("name", ASKED)
def test_items_are_the_posed_ones_and_no_text_is_in_a_table(name: str, tmp_path: Path) -> None:
    _, posed, measured = asked(name, tmp_path, llama(3, max_position_embeddings=512))
    for key, one in measured.items():
        table = one.table
        assert table.items == posed[key].items and len(set(table.items)) == len(table.items) == len(table.units) > 0
        assert all(len(values) == len(table.items) for values in table.columns.values())
        assert all(math.isfinite(value) for values in table.columns.values() for value in values)
        assert not any(" hat" in part for part in (*table.items, *table.units))
        assert [line["item"] for line in one.said] in ([], list(table.items))


@pytest.mark.parametrize("name", ASKED)
def test_other_tokens_are_another_question(name: str, tmp_path: Path) -> None:
    """What a log is compared by: every token that is asked, in order."""
    made, posed, _ = asked(name, tmp_path, llama(3, max_position_embeddings=512))
    again = made.pose(made.read(), coder())
    for key, one in posed.items():
        ids = list(one.tokens())
        assert ids == list(again[key].tokens()) and len(ids) >= len(one.items)
        assert all(0 < border <= len(each) for each, border in ids)


@pytest.mark.parametrize("name", ASKED)
def test_nothing_is_cut(name: str, tmp_path: Path) -> None:
    made = build("benchmark", {"name": name, **GIVEN[name](tmp_path)})
    with pytest.raises(BadInput, match="window"):
        made.pose(made.read(), coder(6))


@pytest.mark.parametrize("name", ASKED)
def test_all_that_is_missing_is_told_at_once(name: str, tmp_path: Path) -> None:
    made = build("benchmark", {"name": name, **GIVEN[name](tmp_path)})
    files = {file.path for file in made.read().values()}
    for file in files:
        file.unlink()
    with pytest.raises(BadInput) as raised:
        made.read()
    assert len(raised.value.problems) >= len(files)
