"""Rotations chosen anew in the middle of training: the function goes on where it was, moments turn with the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.data.batches import Batch, by_length
from letheon.data.encode import Encoder
from letheon.errors import BadInput
from letheon.lowbit.activations import ActivationGrids, low_bit_activations
from letheon.lowbit.architectures import block_layout
from letheon.lowbit.low_bit_pass import LowBitPass
from letheon.lowbit.online import OnlineRotations
from letheon.lowbit.rotating import turn_site, turned_parameters
from letheon.lowbit.rotations.adaptive import AdaptiveRotation, changed
from letheon.lowbit.site_errors import SiteChoice
from letheon.methods import build
from letheon.models import inspect_model, read_tensor
from letheon.numerics.hadamard import Hadamard
from letheon.numerics.token_grids import TokenGrid
from letheon.quantization.pipeline import quantize
from letheon.runs.progress import Progress
from letheon.training import refreshed_basis
from letheon.training.loop import Loop
from letheon.training.refreshed_basis import _as_weights, _Averaging
from letheon.training.stepping import OptimizerSettings
from letheon.training.train import TrainResult, TrainSettings, train
from letheon.unlearning.forget import forget
from tests.architectures.models import saved
from tests.lowbit.lively import lively
from tests.toys import bits, tokenizer, write_lines
from tests.training.test_train import LINES, losses, weights

IDS = torch.arange(2, 34).reshape(2, 16)
ON, OFF = "hadamard", "identity"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "d.jsonl", LINES)


def text() -> list[Batch]:
    encoder = Encoder(tokenizer(), max_length=64)
    return by_length([encoder.question(line["prompt"], line["answer"]) for line in LINES if "prompt" in line], pad=0)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def in_turn(monkeypatch: pytest.MonkeyPatch, choices: Iterator[str]) -> None:
    """Sites are chosen in this order, whatever their errors are."""
    monkeypatch.setattr(AdaptiveRotation, "choose", lambda self, errors: next(choices))


@pytest.mark.parametrize("name", ["llama_tied", "llama_grouped", "qwen2", "gpt2", "gpt_neox"])
def test_another_choice_is_another_basis_of_the_same_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(name)
    before = logits(model)
    rotation = AdaptiveRotation(keys=True, down=True)
    in_turn(monkeypatch, chain([ON, OFF, ON, OFF, ON, OFF], [OFF, ON, ON, OFF, ON, ON]))
    first = rotation.rotate(model, text())
    there = {key: value.clone() for key, value in model.state_dict().items()}
    second = rotation.rotate_again(model, first.choices, text())
    others = changed(first.choices, second.choices)
    assert 2 < len(others) < len(first.choices) and {one.site for one in others} == {"values", "keys", "down"}
    with low_bit_activations(model, online=second.online):
        torch.testing.assert_close(logits(model), before, rtol=1e-9, atol=1e-9)
    blocks = block_layout(model)
    moved = {name for one in others for name in turned_parameters(model, blocks[one.block], one.site)}
    now = model.state_dict()
    for key in there:
        assert (bits(there[key]) != bits(now[key])) == (key in moved), key
    assert rotation.online_of(model, second.choices).down.keys() == second.online.down.keys()


@pytest.mark.parametrize("site", ["values", "down"])
def test_a_gradient_turns_with_its_weight(site: str) -> None:
    """So does its running mean, which is a sum of gradients."""
    model, other = lively("qwen2"), lively("qwen2")
    block = block_layout(model)[0]
    rotation = AdaptiveRotation().rotation_of(model, site, ON)
    assert rotation is not None
    turn_site(other, block, site, rotation)
    online = {"down": {0: rotation}} if site == "down" else {}
    with low_bit_activations(other, online=OnlineRotations(**online)):
        other(input_ids=IDS, labels=IDS).loss.backward()
    model(input_ids=IDS, labels=IDS).loss.backward()
    names = turned_parameters(model, block, site)
    gradients = {name: model.get_parameter(name).grad.clone() for name in names}
    with _as_weights(model, gradients):
        turn_site(model, block, site, rotation)
    for name in names:
        torch.testing.assert_close(gradients[name], other.get_parameter(name).grad, rtol=1e-7, atol=1e-9)


def test_squares_become_the_mean_of_the_channels_that_are_mixed() -> None:
    """What the squares of mixed channels are on average, where the channels are not correlated."""
    generator = torch.Generator().manual_seed(0)
    for rotation in (Hadamard(size=12), Hadamard(size=36), Hadamard(size=8)):
        sizes = torch.rand(rotation.size, generator=generator, dtype=torch.float64)
        drawn = torch.randn(200_000, rotation.size, generator=generator, dtype=torch.float64) * sizes
        found = _Averaging(rotation).rotate(sizes.square())
        torch.testing.assert_close(found, rotation.rotate(drawn).square().mean(0), rtol=2e-2, atol=0)
        exact = (rotation.matrix().square() * sizes.square()[:, None]).sum(0)
        torch.testing.assert_close(found, exact)


# --- whole runs


class Interrupt(Progress):
    """Stops a run after some steps."""

    def __init__(self, at: int) -> None:
        super().__init__(quiet=True)
        self.at = at

    def step(self, done: int, total: int, text: str) -> None:
        if done == self.at:
            raise KeyboardInterrupt


def run(data: Path, out: Path, *, progress: Progress | None = None, **changes: Any) -> TrainResult:
    given: dict[str, Any] = {"batch_size": 4, "epochs": 2, "learning_rate": 3e-3, "checkpoint_every_s": 0}
    given |= {"device": "cpu", "through": "w4a4kv4", "rotation": {"name": "adaptive", "refresh_every": 2}}
    return train(saved("qwen2"), data=data, out=out, progress=progress or Progress(quiet=True), **{**given, **changes})


def by_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Every choice after the first turns all sites over; a function of how often was chosen in this run."""
    real, seen = AdaptiveRotation._choose_all, [0]

    def choose_all(self: AdaptiveRotation, model: Any, *rest: Any) -> Any:
        choices = real(self, model, *rest)
        word = (OFF, ON)[self._turn]  # type: ignore[attr-defined]
        return tuple(type(one)(block=one.block, site=one.site, errors=one.errors, chosen=word) for one in choices)

    def first(self: AdaptiveRotation, model: Any, calibration: Any) -> Any:
        object.__setattr__(self, "_turn", 0)
        return rotate(self, model, calibration)

    def again(self: AdaptiveRotation, model: Any, before: Any, calibration: Any) -> Any:
        object.__setattr__(self, "_turn", int(before[0].chosen == OFF))
        seen[0] += 1
        return rotate_again(self, model, before, calibration)

    rotate, rotate_again = AdaptiveRotation.rotate, AdaptiveRotation.rotate_again
    monkeypatch.setattr(AdaptiveRotation, "_choose_all", choose_all)
    monkeypatch.setattr(AdaptiveRotation, "rotate", first)
    monkeypatch.setattr(AdaptiveRotation, "rotate_again", again)

    def check() -> None:
        assert seen[0] > 1

    return check


def test_the_choice_is_made_anew_and_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = by_step(monkeypatch)
    found = run(data, tmp_path / "run")
    check()
    notes = found.notes["rotation_changes"]
    assert [one["step"] for one in notes] == list(range(2, found.steps, 2))
    assert {one["chosen"] for one in notes[0]["changed"]} == {ON} and {
        one["chosen"] for one in notes[1]["changed"]
    } == {OFF}
    once = run(data, tmp_path / "once", rotation="adaptive")
    assert weights(found.folder) != weights(once.folder)
    assert losses(found.folder)[:2] == losses(once.folder)[:2]


@pytest.mark.parametrize("at", [2, 3])
def test_stopped_anywhere_it_ends_with_the_same_bits(
    at: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_step(monkeypatch)
    straight = run(data, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "stopped", progress=Interrupt(at))
    again = run(data, tmp_path / "stopped")
    assert weights(again.folder) == weights(straight.folder) and losses(again.folder) == losses(straight.folder)
    assert again.notes["rotation_changes"] == straight.notes["rotation_changes"]


def test_stopped_while_it_chooses_it_chooses_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_step(monkeypatch)
    straight = run(data, tmp_path / "straight")
    real, turns = refreshed_basis._turn_checkpoint, iter(chain([True], repeat(False)))

    def stopped(*given: Any) -> None:
        if next(turns):
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setattr(refreshed_basis, "_turn_checkpoint", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "stopped")
    assert weights(run(data, tmp_path / "stopped").folder) == weights(straight.folder)


def test_plain_steps_do_not_see_the_basis(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient step commutes with a rotation: where nothing is rounded, turned over again and again it is the same."""
    off = TokenGrid(bits=16)
    still = LowBitPass(name="w16a16kv16", grids=ActivationGrids(inputs=off, keys=off, values=off))
    monkeypatch.setattr(TrainSettings, "low_bit", property(lambda self: still))
    given: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.3, "clip": None}
    once = run(data, tmp_path / "once", rotation={"name": "adaptive", "residual": False}, **given)
    check = by_step(monkeypatch)
    turned = run(
        data, tmp_path / "turned", rotation={"name": "adaptive", "refresh_every": 2, "residual": False}, **given
    )
    check()
    assert losses(turned.folder) == pytest.approx(losses(once.folder), rel=1e-4)
    assert losses(once.folder)[-1] < 0.95 * losses(once.folder)[0]


def test_what_training_changed_is_counted_in_the_basis_it_ended_in(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After steps of next to nothing, the weights are those it began at."""
    began: dict[str, Tensor] = {}
    by_step(monkeypatch)
    module = import_module("letheon.training.train")
    save = module.save_stage

    def listen(opened: Any, stage: Any, *rest: Any, **named: Any) -> Any:
        began.update({name: read_tensor(named["start"], name) for name in named["start"].tensors})
        return save(opened, stage, *rest, **named)

    monkeypatch.setattr(module, "save_stage", listen)
    made = run(data, tmp_path / "run", learning_rate=1e-9, epochs=1)
    assert made.notes["rotation_changes"][0]["changed"]
    folder = inspect_model(made.folder)
    assert set(began) == set(folder.tensors)
    for name, tensor in began.items():
        torch.testing.assert_close(read_tensor(folder, name), tensor, rtol=1e-4, atol=1e-6)


# --- refused


def test_where_it_cannot_be_done_it_is_refused(data: Path, tmp_path: Path) -> None:
    rotation = {"name": "adaptive", "refresh_every": 2}
    with pytest.raises(BadInput, match="refresh_every must be > 0 steps, got 0"):
        run(data, tmp_path / "a", rotation={"name": "adaptive", "refresh_every": 0})
    with pytest.raises(BadInput, match="holds in the basis that it begins in"):
        forget(
            saved("qwen2"),
            forget_data=data,
            through="w4a4kv4",
            rotation=rotation,
            retain_term="none",
            out=tmp_path / "b",
        )
    with pytest.raises(BadInput, match="refresh_every"):
        quantize(
            saved("qwen2"), method="gptq", rotation=rotation, act_bits=4, calibration_data=data, out=tmp_path / "c"
        )
    made = run(data, tmp_path / "d", rotation="adaptive")
    with pytest.raises(BadInput, match="was trained through low bits already"):
        train(made.folder, data=data, through="w4a4kv4", rotation=rotation, out=tmp_path / "e")


class Kept:
    """One checkpoint."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def save(self, step: int, tensors: Any, state: Any) -> None:
        pytest.fail("nothing is saved")

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        return 4, self.tensors, {}


@pytest.mark.parametrize("site", ["values", "down"])
@pytest.mark.parametrize(("before", "after"), [(ON, OFF), (OFF, ON)])
def test_the_memory_of_the_optimizer_is_written_in_the_new_basis(site: str, before: str, after: str) -> None:
    """A mean of gradients in the old basis becomes what it would have been in the new one."""
    model, rotation = lively("qwen2"), AdaptiveRotation()
    block = block_layout(model)[0]
    names = turned_parameters(model, block, site)
    generator = torch.Generator().manual_seed(0)
    plain = {name: torch.randn(model.get_parameter(name).shape, generator=generator).double() for name in names}

    def in_basis(chosen: str) -> dict[str, Tensor]:
        found = {name: tensor.clone() for name, tensor in plain.items()}
        with _as_weights(model, found):
            turn_site(model, block, site, rotation.rotation_of(model, site, chosen))
        return found

    kept = {f"exp_avg/{name}": tensor for name, tensor in in_basis(before).items()}
    kept |= {f"exp_avg_sq/{name}": tensor.square() for name, tensor in plain.items()}
    was, now = (SiteChoice(block=0, site=site, errors={}, chosen=word) for word in (before, after))
    store = refreshed_basis._Remembering(Kept(kept), (was,))
    loop = Loop(
        model=model,
        moving={},
        gradient=lambda model, parts: pytest.fail("no step is taken"),
        parts=lambda step: {},
        steps=1,
        optimizer=OptimizerSettings(learning_rate=1e-3),
        rate=build("rate", "constant"),
    )
    refreshed_basis._turn_checkpoint(loop, store, rotation, [was], [now])
    for name, tensor in in_basis(after).items():
        torch.testing.assert_close(store.tensors[f"exp_avg/{name}"], tensor, rtol=1e-9, atol=1e-9)
        squares = store.tensors[f"exp_avg_sq/{name}"]
        assert float(squares.sum()) == pytest.approx(float(plain[name].square().sum())) and bool((squares > 0).all())
