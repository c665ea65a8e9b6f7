"""Training through W4A4KV4 in a basis of its own: the same function, the same gradients, and an ordinary folder after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from letheon.errors import BadInput
from letheon.lowbit.activations import low_bit_activations
from letheon.lowbit.low_bit_pass import (
    THROUGH,
    Basis,
    LowBitPass,
    kept_online,
    leave_basis,
    pass_named,
    rotation_for,
    take_basis,
)
from letheon.lowbit.rotations.adaptive import AdaptiveRotation
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.methods import build
from letheon.models import inspect_model, load_model
from letheon.numerics.grids import Grid
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from letheon.training import rotated_basis
from letheon.training.straight_through import straight_through, trained_through
from letheon.training.train import TrainResult, train
from tests.architectures.models import make_model, mixture, save_model_folder, saved
from tests.lowbit.lively import lively
from tests.toys import bits, write_lines
from tests.training.test_train import LINES, losses, weights

IDS = torch.arange(2, 34).reshape(2, 16)
FOUR = pass_named("w4a4kv4")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "d.jsonl", LINES)


def run(
    data: Path,
    out: Path,
    *,
    name: str = "llama",
    folder: Path | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> TrainResult:
    given = {"batch_size": 4, "epochs": 2, "learning_rate": 3e-3, "checkpoint_every_s": 0, "device": "cpu"}
    given |= {"through": "w4a4kv4", "rotation": "adaptive"}
    return train(
        folder or saved(name), data=data, out=out, progress=progress or Progress(quiet=True), **{**given, **changes}
    )


def loss_of(model: Any) -> Tensor:
    loss: Tensor = model(input_ids=IDS, labels=IDS).loss
    return loss


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


# --- the pass


@pytest.mark.parametrize(
    ("name", "weights", "acts"),
    [
        ("int4", Grid(bits=4), None),
        ("w4a4kv4", Grid(bits=4), 4),
        ("w16a8kv16", None, 8),
        ("w3a16kv16", Grid(bits=3), None),
    ],
)
def test_words_for_passes(name: str, weights: Grid | None, acts: int | None) -> None:
    found = pass_named(name)
    assert found.weights == weights and found.name == name
    assert (None if found.grids is None else found.grids.inputs.bits) == acts
    assert pass_named(None) == LowBitPass()


@pytest.mark.parametrize("name", ["w4a4", "w1a4kv4", "w4a4kv9", "int9", ""])
def test_other_words_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="w4a4kv4 and the like"):
        pass_named(name)


@pytest.mark.parametrize("name", ["llama_tied", "llama_grouped", "qwen2", "gemma"])
def test_at_16_bits_any_rotation_is_the_model_itself_and_its_gradients(name: str) -> None:
    """In float64; the gradient of a rotated weight is that of the weight, rotated: by the untouched ones it is told."""
    model, other = lively(name), lively(name)
    rotated = HadamardRotation(residual=False).rotate(other)
    with low_bit_activations(other, online=rotated.online):
        found = loss_of(other)
    expected = loss_of(model)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    found.backward()
    expected.backward()
    untouched = [
        one
        for one in dict(model.named_parameters())
        if not any(part in one for part in ("v_proj", "o_proj", "down_proj"))
    ]
    assert len(untouched) > 5
    for one in untouched:
        torch.testing.assert_close(other.get_parameter(one).grad, model.get_parameter(one).grad, rtol=1e-7, atol=1e-9)


def test_no_rotation_is_the_plain_straight_through_baseline_to_the_bit() -> None:
    model, other = make_model("llama_grouped"), make_model("llama_grouped")
    with trained_through(model, FOUR, Basis()):
        loss_of(model).backward()
    with straight_through(other, Grid(bits=4)), low_bit_activations(other, grids=FOUR.grids):
        loss_of(other).backward()
    for one, another in zip(model.parameters(), other.parameters(), strict=True):
        assert bits(one.grad) == bits(another.grad)


def test_gradient_steps_in_the_merged_basis_are_those_of_weights_that_are_rotated_on_the_way() -> None:
    """The published form of one site: y = Q(W R) Q(R^T x), W stays as it was; after ten steps W R is the merged weight."""
    from letheon.lowbit.rotating import site_rotation
    from letheon.numerics.grids import fake_quantize
    from letheon.numerics.token_grids import TokenGrid, round_tokens

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(16, size, generator=generator, dtype=torch.float64) for size in (32, 8))
    start = torch.randn(8, 32, generator=generator, dtype=torch.float64)
    rotation = site_rotation("down", 32, seed=0)

    def rounded(weight: Tensor) -> Tensor:
        return weight + (fake_quantize(weight.detach(), Grid(bits=4)) - weight).detach()

    merged, master = rotation.rotate(start).requires_grad_(), start.clone().requires_grad_()
    turned = round_tokens(rotation.rotate(x), TokenGrid(bits=4))
    for _ in range(10):
        for weight, way in ((merged, lambda w: w), (master, rotation.rotate)):
            loss = (turned @ rounded(way(weight)).T - y).square().mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= 0.1 * gradient
    torch.testing.assert_close(rotation.rotate(master), merged, rtol=1e-9, atol=1e-9)


# --- the rotation


def test_an_adaptive_rotation_weighs_the_grids_of_the_pass() -> None:
    found = rotation_for("adaptive", pass_named("w3a8kv16"))
    assert (found.bits, found.input_bits, found.cache_bits) == (3, 8, 16) and found.sites == (
        "residual",
        "values",
        "down",
    )
    told = rotation_for({"name": "adaptive", "bits": 2, "keys": True}, FOUR)
    assert told.bits == 2 and told.sites == AdaptiveRotation().sites
    with pytest.raises(BadInput, match=r"nothing rounds them\. Say --through w4a4kv4"):
        rotation_for("hadamard", pass_named("int4"))
    with pytest.raises(BadInput, match="nothing rounds them"):
        rotation_for("adaptive", pass_named(None))
    assert rotation_for("none", pass_named(None)) == build("rotation", "none")


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "gpt_neox"])
def test_a_basis_is_taken_and_left(name: str) -> None:
    model = lively(name)
    before = logits(model)
    online = HadamardRotation().rotate(model).online
    assert online.down and not torch.allclose(logits(model), before, atol=1e-3)
    leave_basis(model, online)
    torch.testing.assert_close(logits(model), before, rtol=1e-9, atol=1e-9)
    take_basis(model, online)
    with low_bit_activations(model, online=online):
        torch.testing.assert_close(logits(model), before, rtol=1e-9, atol=1e-9)


# --- whole runs


@pytest.mark.parametrize("name", ["llama_tied", "llama_grouped", "gpt2", "gpt_neox", "gemma"])
def test_what_is_saved_is_an_ordinary_model_and_rounded_again_it_is_the_one_that_was_trained(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}
    real = rotated_basis.leave

    def listen(opened: Any, chosen: LowBitPass, rotation: Any, basis: Basis) -> None:
        with trained_through(opened.model, chosen, basis):
            seen["low"] = logits(opened.model)
        with low_bit_activations(opened.model, online=basis.online):
            seen["full"] = logits(opened.model)
        real(opened, chosen, rotation, basis)

    monkeypatch.setattr("letheon.training.train.leave", listen)
    made = run(data, tmp_path / "run", name=name, rotation={"name": "hadamard", "keys": True})
    theirs = AutoModelForCausalLM.from_pretrained(made.folder, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(theirs), seen["full"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen["full"], seen["low"], atol=1e-2)
    again = load_model(made.folder)
    online = kept_online(again)
    assert len(online.down) == 2 and len(online.keys) == 2
    take_basis(again, online)
    with trained_through(again, FOUR, Basis(online=online)):
        torch.testing.assert_close(logits(again), seen["low"], rtol=1e-3, atol=1e-3)
    assert inspect_model(made.folder).config[THROUGH]["pass"] == "w4a4kv4"


def test_it_learns_through_four_bits(data: Path, tmp_path: Path) -> None:
    found = losses(run(data, tmp_path / "run", epochs=15).folder)
    assert sum(found[-3:]) < 0.8 * sum(found[:3])


@pytest.mark.parametrize("rotation", ["none", "adaptive"])
def test_stopped_and_continued_it_ends_with_the_same_bits(rotation: str, data: Path, tmp_path: Path) -> None:
    class Interrupt(Progress):
        def step(self, done: int, total: int, text: str) -> None:
            if done == 3:
                raise KeyboardInterrupt

    straight = run(data, tmp_path / "straight", rotation=rotation)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "stopped", rotation=rotation, progress=Interrupt(quiet=True))
    again = run(data, tmp_path / "stopped", rotation=rotation)
    assert weights(again.folder) == weights(straight.folder) and losses(again.folder) == losses(straight.folder)


def test_a_choice_that_comes_out_otherwise_is_not_continued(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupt(Progress):
        def step(self, done: int, total: int, text: str) -> None:
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "run", rotation="hadamard", progress=Interrupt(quiet=True))
    monkeypatch.setattr(rotated_basis, "describe_online", lambda online: {"keys": [], "down": []})
    with pytest.raises(BadInput, match="the sites to rotate came out otherwise than when the run began"):
        run(data, tmp_path / "run", rotation="hadamard")


def test_a_choice_looks_at_every_record_of_a_small_set(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = AdaptiveRotation.rotate

    def listen(self: AdaptiveRotation, model: Any, calibration: Any) -> Any:
        seen.extend(item for batch in calibration for item in batch.items.tolist())
        assert any(not bool(batch.attention_mask.all()) for batch in calibration), "padding is told apart"
        return real(self, model, calibration)

    monkeypatch.setattr(AdaptiveRotation, "rotate", listen)
    run(data, tmp_path / "run", epochs=1)
    assert sorted(seen) == list(range(len(LINES)))
    monkeypatch.setattr(rotated_basis, "SEQUENCES", 5)
    seen.clear()
    run(data, tmp_path / "few", epochs=1)
    assert len(seen) == 5


def test_choices_are_noted_with_their_errors(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run")
    notes = RunFolder.open(tmp_path / "run").record().stages[0].notes
    choices = notes["rotation_choices"]
    assert {(choice["block"], choice["site"]) for choice in choices} == {
        (block, site) for block in (0, 1) for site in ("values", "down")
    }
    assert all(choice["errors"]["identity"]["activation"] > 0 for choice in choices)


def test_a_model_trained_through_low_bits_goes_on_in_its_basis_or_not_at_all(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "one", rotation="hadamard").folder
    more = train(
        first, data=data, out=tmp_path / "two", through="w4a4kv4", epochs=1, device="cpu", progress=Progress(quiet=True)
    )
    same = run(data, tmp_path / "same", rotation="hadamard", folder=first)
    said = [inspect_model(folder).config[THROUGH] for folder in (first, more.folder, same.folder)]
    assert said[0] == said[1] == said[2] and said[0]["online"]["down"] and said[0]["rotation"]["name"] == "hadamard"
    for settings, words in (
        ({}, "training it without would undo that"),
        ({"through": "int4"}, "training it without would undo that"),
        ({"through": "w4a4kv4", "rotation": "adaptive"}, "was trained in another rotated basis already"),
    ):
        with pytest.raises(BadInput, match=words):
            train(first, data=data, out=tmp_path / "no", progress=Progress(quiet=True), **settings)
    assert not (tmp_path / "no").exists()


def test_going_on_begins_with_the_model_that_was_trained(data: Path, tmp_path: Path) -> None:
    """With steps too small to be seen: the same model at full precision, and the first loss is that of its low bits."""
    first = run(data, tmp_path / "one", rotation="hadamard").folder
    more = run(data, tmp_path / "two", rotation="none", folder=first, learning_rate=1e-9, epochs=1, batch_size=12)
    torch.testing.assert_close(logits(load_model(more.folder)), logits(load_model(first)), rtol=1e-4, atol=1e-4)
    again = run(
        data, tmp_path / "three", rotation="none", folder=more.folder, learning_rate=1e-9, epochs=1, batch_size=12
    )
    assert losses(again.folder)[0] == pytest.approx(losses(more.folder)[0], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"through": "w4a4kv3x"}, "is not a grid"),
        ({"through": None}, "nothing rounds them"),
        ({"rotation": {"name": "hadamard", "sed": 1}}, "unknown key 'sed'"),
        ({"rotation": "hadamar"}, "Did you mean 'hadamard'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything(
    settings: dict[str, Any], said: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        run(data, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_an_architecture_that_cannot_be_rotated_is_named(data: Path, tmp_path: Path) -> None:
    odd = make_model("llama")
    odd.config.intermediate_size = 46
    from tests.architectures.models import make_from

    folder = save_model_folder(make_from(odd.config), tmp_path / "odd")
    with pytest.raises(BadInput, match=r"no Hadamard matrix of order 46 is known here"):
        train(
            folder,
            data=data,
            out=tmp_path / "run",
            through="w4a4kv4",
            rotation="hadamard",
            progress=Progress(quiet=True),
        )


@pytest.mark.parametrize("rotation", ["adaptive", "hadamard", {"name": "adaptive", "keys": True, "input_bits": 5}])
def test_settings_that_are_written_out_mean_what_they_meant(rotation: Any) -> None:
    """A recipe, and --print-config, say every setting; what nobody has said is still the pass's own."""
    from letheon.recipes.verbs import resolve

    wanted = {"model": "m", "data": "d.jsonl", "through": "w3a8kv16", "rotation": rotation}
    once = resolve("train", wanted)
    assert rotation_for(once["rotation"], pass_named("w3a8kv16")) == rotation_for(rotation, pass_named("w3a8kv16"))
    assert resolve("train", once) == once


def test_what_a_rotation_leaves_open_is_settled_by_the_pass_and_else_on() -> None:
    settled = rotation_for(AdaptiveRotation(), pass_named("w2a8kv4"))
    assert (settled.bits, settled.input_bits, settled.cache_bits, settled.keys) == (2, 8, 4, False)
    assert rotation_for(HadamardRotation(), FOUR).sites == ("residual", "values", "down")
    assert AdaptiveRotation().sites == HadamardRotation().sites == ("residual", "values", "keys", "down")


@pytest.mark.parametrize("through", ["int4", "w4a16kv16", "w4a4kv4"])
def test_a_mixture_of_experts_is_refused_before_its_weights_are_loaded(
    through: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model_folder(mixture(), tmp_path / "mixture")
    monkeypatch.setattr("letheon.training.train.open_for_training", lambda *given, **named: pytest.fail("loaded"))
    with pytest.raises(BadInput, match=r"MODEL .*mixture: through: .*mlp.experts holds several matrices"):
        run(data, tmp_path / "run", folder=folder, through=through, rotation="none")
    assert not (tmp_path / "run").exists()
