"""Every two choices together, in one run or another: they work, twice to the same bits, and after a kill; or say why not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from letheon.errors import BadInput
from letheon.methods import names
from letheon.models import inspect_model
from tests.architectures.models import saved
from tests.unlearning.test_forget import Interrupt, World, metrics, run, weights

CHOICES: dict[str, list[Any]] = {
    "method": names("forget_term"),
    "retain_term": names("retain_term"),
    "balance": names("balance"),
    "smooth": names("smoother"),
    "scope": [*names("scope"), "sure at every step"],
    "rate": ["constant", "gen"],
    "through": [None, "int4", "w4a4kv4"],
}
SETTINGS: dict[str, Any] = {
    "weight_average": {"name": "weight_average", "start": 1, "every": 1},
    "randomized": {"name": "randomized", "sigma": 1e-3},
    "gen": {"name": "gen", "every": 2, "bracket": 3},
    "sure at every step": {"name": "sure", "refresh": "step"},
}
"""What a name alone would not do in three steps."""
DEFAULT = 4
"""Rows that run by default; the others are slow."""


def covering() -> list[dict[str, Any]]:
    """Rows in which every two values of two choices meet, found greedily; no randomness."""
    order = list(CHOICES)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(order, 2)
        for x in range(len(CHOICES[a]))
        for y in range(len(CHOICES[b]))
    }
    rows: list[dict[str, Any]] = []
    while missing:
        row = dict(min(missing))  # the least pair that has not met
        for name in order:
            if name not in row:
                row[name] = max(range(len(CHOICES[name])), key=lambda value: (_met({**row, name: value}, order, missing), -value))  # fmt: skip
        missing -= {pair for pair in missing if all(row[name] == value for name, value in pair)}
        rows.append({name: CHOICES[name][row[name]] for name in order})
    return rows


def _met(row: dict[str, int], order: list[str], missing: set[Any]) -> int:
    given = [(name, row[name]) for name in order if name in row]
    return sum(pair in missing for pair in itertools.combinations(given, 2))


def given() -> list[Any]:
    return [
        pytest.param(row, id="-".join(map(str, row.values())), marks=() if number < DEFAULT else pytest.mark.slow)
        for number, row in enumerate(covering())
    ]


def test_every_two_values_meet() -> None:
    rows = covering()
    for a, b in itertools.combinations(CHOICES, 2):
        met = {(row[a], row[b]) for row in rows}
        assert met == set(itertools.product(CHOICES[a], CHOICES[b])), (a, b)
    assert len(rows) < 60


def is_refused(row: dict[str, Any]) -> str:
    """The reason that has to be given, where a row cannot be."""
    if row["retain_term"] == "none" and (row["balance"] != "weighted" or row["rate"] == "gen"):
        return "retain term 'none'"
    if row["smooth"] == "weight_average" and row["scope"] == "adapter":
        return "the mean of each is not the factors of the mean weights"
    if row["smooth"] == "randomized" and row["scope"] == "sure at every step":
        return "draws for every weight"
    return ""


@pytest.mark.parametrize("row", given())
def test_choices_work_together_or_say_why_not(world: World, tmp_path: Path, row: dict[str, Any]) -> None:
    changes = {name: SETTINGS.get(value, value) for name, value in row.items()}
    questions = world["forget"].parent / "questions.jsonl"
    if not questions.exists():  # a refusal has no place in a running text
        lines = [line for line in world["forget"].read_text().splitlines() if '"prompt"' in line]
        questions.write_text("".join(f"{line}\n" for line in lines))
    changes |= {"rotation": "adaptive"} if row["through"] == "w4a4kv4" else {}
    changes |= {"forget_data": questions, "steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    if reason := is_refused(row):
        with pytest.raises(BadInput, match=reason):
            run(world, tmp_path / "refused", **changes)
        return
    whole = run(world, tmp_path / "whole", **changes)
    before, after = load_file(inspect_model(saved("llama")).path / "model.safetensors"), load_file(whole.folder / "model.safetensors")  # fmt: skip
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "killed", progress=Interrupt(2), **changes)
    again = run(world, tmp_path / "killed", **changes)
    assert weights(again.folder) == weights(whole.folder) and metrics(again.folder) == metrics(whole.folder)
