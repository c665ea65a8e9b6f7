"""Tables as files hold them: nothing is lost, nobody is named, and what does not fit together is no table."""

from __future__ import annotations

import json

import pytest

from letheon.audits.columns import Scores
from letheon.audits.matrix import HALF
from letheon.audits.stored import Rows, from_plain, to_plain
from letheon.errors import NotMeasured
from tests.audits.fakes import familiar, hits, rates

TABLES: dict[str, Rows] = {
    "subject": {
        "as_is": {"a": hits(2, 5), "b": familiar([1.0, 0.25], [0.5]), "c": NotMeasured("no texts")},
        "int4": {"a": hits(1, 5), "b": familiar([1.0, 0.75], [0.5]), "c": NotMeasured("no texts")},
    },
    "control": {"as_is": {"a": hits(0, 5, prefix="other"), "b": HALF}},
}


def through_a_file() -> dict[str, Rows]:
    codes: dict[str, str] = {}
    held = to_plain(TABLES, lambda name: codes.setdefault(name, f"<{len(codes)}>"))
    names = {code: name for name, code in codes.items()}
    return from_plain(json.loads(json.dumps(held, allow_nan=False)), names.__getitem__)


def test_what_goes_in_comes_out() -> None:
    found = through_a_file()
    assert list(found) == list(TABLES)
    for table, rows in TABLES.items():
        assert {at: list(row) for at, row in found[table].items()} == {at: list(row) for at, row in rows.items()}
        for at, row in rows.items():
            for column, answer in row.items():
                again = found[table][at][column]
                if isinstance(answer, NotMeasured):
                    assert isinstance(again, NotMeasured) and str(again) == str(answer)
                elif answer is HALF:
                    assert again is HALF
                else:
                    assert isinstance(again, Scores)
                    assert list(again.items) == list(answer.items) and list(again.units) == list(answer.units)
                    assert again.values == answer.values and again.member == answer.member


def test_who_was_asked_stands_once_and_under_no_name() -> None:
    held = to_plain(TABLES, lambda name: f"{hash(name) & 0xFFFFFFFF:x}")
    assert len(held["asked"]) == 3  # two columns of one, one of the other: conditions share them
    text = json.dumps(held)
    for name in ("u0", "u/0", "other0", "item m0", "m0"):
        assert f'"{name}"' not in text


def test_a_name_is_hashed_once() -> None:
    seen: list[str] = []
    to_plain(TABLES, lambda name: seen.append(name) or name)
    assert len(seen) == len(set(seen))


def test_what_was_rounded_is_what_is_kept() -> None:
    """Cells are made of what the file holds; else they could not be made again to the last digit."""
    scores = rates([1 / 3, 2 / 3, 1e-9 / 7]).rounded()
    held = json.loads(json.dumps(to_plain({"t": {"c": {"x": scores}}}, str)))
    (again,) = from_plain(held)["t"]["c"].values()
    assert isinstance(again, Scores) and again.values == scores.values
    assert scores.values[0] == 0.33333333 and again.rounded().values == scores.values


@pytest.mark.parametrize(
    "harm",
    [
        lambda held: held["scores"]["subject"]["as_is"]["a"]["values"].pop(),
        lambda held: held["scores"]["subject"]["as_is"]["a"].update(asked=7),
        lambda held: held["asked"][0]["units"].pop(),
        lambda held: held["asked"][1]["member"].pop(),
        lambda held: held["scores"]["subject"]["as_is"]["a"].pop("asked"),
        lambda held: held["scores"]["subject"]["as_is"]["a"].update(values=["x"] * 5),
        lambda held: held.pop("asked"),
    ],
)
def test_a_damaged_table_is_refused(harm: object) -> None:
    held = json.loads(json.dumps(to_plain(TABLES, str)))
    harm(held)  # type: ignore[operator]
    with pytest.raises((ValueError, IndexError, KeyError)):
        from_plain(held)
