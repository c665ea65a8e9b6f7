"""Forgetting through W4A4KV4: the reference goes the same way, and what is quantized from the result is what forgot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from letheon.errors import BadInput
from letheon.lowbit.low_bit_pass import THROUGH
from letheon.models import inspect_model, load_model
from letheon.runs.record import RunFolder
from tests.architectures.models import saved
from tests.unlearning.test_forget import Interrupt, World, metrics, run, weights

FOUR: dict[str, Any] = {"through": "w4a4kv4", "rotation": "adaptive"}


def test_the_reference_of_a_log_ratio_goes_the_same_way(world: World, tmp_path: Path) -> None:
    """At the first step NPO's loss is 2 / beta log 2, to the last digit that a wrong basis or grid would change."""
    made = run(world, tmp_path / "run", steps=2, **FOUR)
    assert metrics(made.folder)[0]["forget_loss"] == pytest.approx(2 * 0.6931472, rel=1e-6)
    plain = run(world, tmp_path / "plain", steps=2, through="w4a4kv4")
    retain = [metrics(one.folder)[0]["retain_loss"] for one in (made, plain)]
    assert retain[0] != pytest.approx(retain[1], rel=1e-6), "the rotation changes nothing"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scope": {"name": "sure", "percentile": 80.0}, "smooth": "sam"},
        {"scope": "adapter"},
        {"balance": "ngdiff", "rate": {"name": "gen", "every": 2, "bracket": 3}},
        {"smooth": "curvature"},
    ],
    ids=str,
)
def test_a_killed_run_continues_to_the_same_bits(world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**FOUR, **changes, "steps": 4}
    straight = run(world, tmp_path / "straight", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "killed", progress=Interrupt(at=2), **changes)
    again = run(world, tmp_path / "killed", **changes)
    assert weights(again.folder) == weights(straight.folder) and metrics(again.folder) == metrics(straight.folder)


def test_what_is_saved_says_at_full_precision_what_was_trained(world: World, tmp_path: Path) -> None:
    """With a step too small to be seen, the rotated, trained and restored model says what the original said."""
    made = run(world, tmp_path / "run", steps=1, learning_rate=1e-9, **FOUR)
    ids = torch.arange(2, 22).reshape(2, 10)
    with torch.no_grad():
        found, wanted = (load_model(folder)(input_ids=ids).logits for folder in (made.folder, saved("llama")))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert inspect_model(made.folder).config[THROUGH]["rotation"]["name"] == "adaptive"
    notes = RunFolder.open(tmp_path / "run").record().stages[0].notes
    assert {choice["site"] for choice in notes["rotation_choices"]} == {"values", "down"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"through": "int4", "rotation": "hadamard"}, "nothing rounds them"),
        ({"through": "w4a4kv4", "weights": "stored"}, "which takes float32. Say --weights float32"),
        ({**FOUR, "scope": {"name": "adapter", "merge": False}}, "a change that is kept apart"),
        ({"through": "w9a4kv4"}, "w4a4kv4 and the like"),
    ],
)
def test_what_does_not_go_together_is_refused(world: World, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        run(world, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
