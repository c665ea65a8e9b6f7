"""What forgetting through low bits changes is counted in its own basis, and what ships is the model that was trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MixtralConfig

from letheon.errors import BadInput, CannotFinish
from letheon.lowbit.low_bit_pass import Basis, kept_online, pass_named, take_basis
from letheon.methods import names
from letheon.models import load_model
from letheon.runs.record import RunFolder
from letheon.training.prepare import Opened
from letheon.training.straight_through import trained_through
from letheon.unlearning import forget as module
from tests.architectures.models import _BLOCKS, make_from, save_model_folder
from tests.unlearning.test_forget import World, metrics, run, weights

SMOOTHERS: dict[str, dict[str, Any]] = {
    "weight_average": {"start": 1, "every": 1},
    "randomized": {"sigma": 1e-3},
}
FOUR: dict[str, Any] = {"through": "w4a4kv4", "rotation": {"name": "adaptive", "keys": True}}


def notes(out: Path) -> dict[str, Any]:
    return dict(RunFolder.open(out).record().stages[0].notes)


def prompts(count: int) -> Tensor:
    """Of six random tokens each."""
    return torch.randint(2, 700, (count, 6), generator=torch.Generator().manual_seed(5))


def continued(model: Any, start: Tensor, tokens: int = 8) -> Tensor:
    """Greedily, with a cache."""
    with torch.no_grad():
        said = model.generate(start, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    return torch.as_tensor(said)


def test_only_what_a_scope_lets_move_is_counted_as_moved(world: World, tmp_path: Path) -> None:
    run(world, tmp_path / "run", through="w4a4kv4", rotation={"name": "hadamard", "down": False}, scope="sure")
    found = notes(tmp_path / "run")
    share = found["survival"]["moved"] / found["survival"]["total"]
    assert 0 < share <= found["active_share"] < 0.5


@pytest.mark.parametrize("scope", ["all", "sure", "adapter", "layers"])
def test_the_file_says_what_was_trained_and_low_bits_say_it_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    """At full precision by any software; with R4 put back and rounded, the same logits and words on a hundred prompts."""
    seen: dict[str, Tensor] = {}
    real, start = module.leave, prompts(100)

    def listen(opened: Opened, chosen: Any, rotation: Any, basis: Basis) -> None:
        with torch.no_grad(), trained_through(opened.model, chosen, basis):
            seen["low"] = opened.model(input_ids=start).logits
            seen["words"] = continued(opened.model, start)
        real(opened, chosen, rotation, basis)
        with torch.no_grad():
            seen["full"] = opened.model(input_ids=start).logits

    monkeypatch.setattr(module, "leave", listen)
    folder = run(world, tmp_path / "run", scope=scope, **FOUR).folder
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=start).logits, seen["full"], rtol=1e-5, atol=1e-5)
    again = load_model(folder)
    online = kept_online(again)
    assert online.down and online.keys
    take_basis(again, online)
    with trained_through(again, pass_named("w4a4kv4"), Basis(online=online)), torch.no_grad():
        torch.testing.assert_close(again(input_ids=start).logits, seen["low"], rtol=1e-3, atol=1e-3)
        assert torch.equal(continued(again, start), seen["words"])
    assert not torch.allclose(seen["low"], seen["full"], atol=1e-2)


def test_steps_that_move_nothing_leave_no_file(world: World, tmp_path: Path) -> None:
    with pytest.raises(CannotFinish, match="no weight has moved"):
        run(world, tmp_path / "run", learning_rate=1e-30, steps=1, **FOUR)


def test_without_a_retain_set_it_is_said_what_the_choice_looks_at(world: World, tmp_path: Path) -> None:
    run(world, tmp_path / "run", retain_data=None, retain_term="none", steps=1, **FOUR)
    [warning] = [one for one in RunFolder.open(tmp_path / "run").record().stages[0].warnings if "rotation" in one]
    assert warning.startswith("no retain set, so rotation adaptive is chosen on what is to be forgotten. Give --retain")


def test_models_whose_pass_cannot_be_taken_are_named_before_anything(world: World, tmp_path: Path) -> None:
    mixture = save_model_folder(make_from(MixtralConfig(**_BLOCKS, num_local_experts=4)), tmp_path / "mixture")
    for rotation, said in (("adaptive", "a mixture of experts cannot be rotated yet. Use rotation none"), ("none", "")):
        with pytest.raises(BadInput) as caught:
            run(world, tmp_path / "run", model=mixture, through="w4a4kv4", rotation=rotation)
        assert said in str(caught.value)
        assert "the inputs of a mixture's experts cannot be rounded yet. Leave activations at 16" in str(caught.value)
    assert not (tmp_path / "run").exists()


PARTS: list[dict[str, Any]] = [
    *({"smooth": {"name": name, **SMOOTHERS.get(name, {})}} for name in names("smoother")),
    *({"balance": name} for name in names("balance")),
    *({"scope": name} for name in names("scope")),
    {"scope": {"name": "sure", "refresh": "step"}},
    {"rate": {"name": "gen", "every": 2, "bracket": 3}},
    {"optimizer": "sgd", "learning_rate": 1e-2},
    {"micro_batch_size": 3},
    {"retain_term": "klr"},
    {"method": "rmu", "retain_term": "activation"},
    {"method": {"name": "simnpo", "until": 2.0}},
]


BY_DEFAULT = ("curvature", "sam", "ngdiff", "layers", "'refresh': 'step'", "gen", "klr")


def given() -> list[Any]:
    """The others are slow."""
    is_quick = [any(word in str(part) for word in BY_DEFAULT) for part in PARTS]
    marks = [() if quick else pytest.mark.slow for quick in is_quick]
    return [pytest.param(part, id=str(part), marks=mark) for part, mark in zip(PARTS, marks, strict=True)]


@pytest.mark.parametrize("changes", given())
def test_each_part_of_a_method_runs_in_the_rotated_basis_and_twice_the_same(
    world: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    one, two = (run(world, tmp_path / place, steps=3, **FOUR, **changes) for place in ("one", "two"))
    assert weights(one.folder) == weights(two.folder) and metrics(one.folder) == metrics(two.folder)
    for line in metrics(one.folder):
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
