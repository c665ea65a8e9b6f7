"""Whole runs in which only some units move, or whose forward passes are rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from letheon.errors import BadInput
from letheon.models import as_matrix, decoder_linears, load_model
from letheon.numerics.grids import Grid, fake_quantize
from letheon.runs.record import RunFolder
from letheon.training.active import Active
from letheon.training.loop import Loop, run_loop
from letheon.unlearning import forget as module
from letheon.unlearning.saliency import saliency
from tests.architectures.models import make_model, save_model_folder, saved
from tests.toys import bits
from tests.unlearning.test_forget import Interrupt, World, captured, metrics, run, weights

SURE = {"name": "sure", "percentile": 80.0}
HARD: dict[str, Any] = {"weight_decay": 0.3, "learning_rate": 1e-2}


STEP = {**SURE, "refresh": "step"}


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("granularity", ["row", "module", "element"])
@pytest.mark.parametrize("smooth", ["none", pytest.param("sam", marks=pytest.mark.slow)])
def test_percentile_0_is_the_plain_run_to_the_bit(world: World, tmp_path: Path, granularity: str, smooth: str) -> None:
    scope = {"name": "sure", "percentile": 0.0, "granularity": granularity}
    plain = run(world, tmp_path / "plain", smooth=smooth, **HARD)
    assert weights(run(world, tmp_path / "sure", smooth=smooth, scope=scope, **HARD).folder) == weights(plain.folder)


@pytest.mark.parametrize("changes", [{}, {"balance": "ngdiff"}, {"smooth": "sam"}, {"rate": {"name": "gen", "every": 2}}, {"micro_batch_size": 2}])  # fmt: skip
def test_units_that_are_not_active_keep_every_bit(world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
    made = run(world, tmp_path / "run", scope=SURE, **HARD, **changes)
    before, after = parameters(saved("llama")), parameters(made.folder)
    rows = moved = 0
    for name, old in before.items():
        rows += len(old)
        moved += sum(bits(a) != bits(b) for a, b in zip(old, after[name], strict=True))
    assert 0.12 < moved / rows <= 0.21
    noted = RunFolder.open(made.folder.parent).record().stages[0].notes["active_share"]
    assert 0.05 < noted < 0.6


def test_the_optimizer_remembers_active_units_alone(world: World, tmp_path: Path) -> None:
    loop = captured(world, tmp_path / "run", scope={"name": "sure", "percentile": 95.0})
    sizes: dict[str, int] = {}

    class Store:
        def save(self, step: int, tensors: dict[str, torch.Tensor], state: Any) -> None:
            sizes.update({name: tensor.numel() for name, tensor in tensors.items()})

        def load(self) -> None:
            return None

    loop.checkpoints, loop.checkpoint_every_s, loop.steps = Store(), 0.0, 1
    run_loop(loop)
    held = sum(size for name, size in sizes.items() if name.startswith("exp_avg/"))
    whole = sum(parameter.numel() for parameter in loop.model.parameters())
    assert 0 < held < 0.15 * whole


def test_saliency_is_the_gradient_of_the_whole_sets_mean(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many batches of one record and one batch of all give one map."""
    found: list[list[torch.Tensor]] = []
    original = module.active_units

    def noted(scope: Any, term: Any, opened: Any, moving: Any, examples: Any) -> dict[str, Active]:
        for tokens in (1, 10_000):
            monkeypatch.setattr("letheon.data.batches.batch_tokens_on", lambda device, tokens=tokens: tokens)
            found.append(list(saliency(term, opened, moving, examples)))
        monkeypatch.undo()
        return original(scope, term, opened, moving, examples)

    monkeypatch.setattr(module, "active_units", noted)
    run(world, tmp_path / "run", scope=SURE, steps=1)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


# --- a map for every step


def test_percentile_0_is_the_plain_run_however_often_the_map_is_made(world: World, tmp_path: Path) -> None:
    scope = {"name": "sure", "percentile": 0.0, "refresh": "step"}
    plain = run(world, tmp_path / "plain", **HARD)
    assert weights(run(world, tmp_path / "sure", scope=scope, **HARD).folder) == weights(plain.folder)


def changed_units(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[tuple[str, int]]:
    return {
        (name, row)
        for name, old in before.items()
        for row, (one, other) in enumerate(zip(old, after[name], strict=True))
        if bits(one) != bits(other)
    }


@pytest.mark.parametrize("percentile", [100.0, 80.0])
@pytest.mark.parametrize("changes", [{}, {"balance": "ngdiff"}, {"smooth": "sam"}, {"micro_batch_size": 2}, {"optimizer": "sgd", "learning_rate": 0.5}], ids=str)  # fmt: skip
def test_a_step_moves_the_units_of_its_own_forget_gradient_and_no_other(
    world: World, tmp_path: Path, percentile: float, changes: dict[str, Any]
) -> None:
    """Expected units: from norms of rows of the same batch's gradient, made here a second time."""
    scope = {"name": "sure", "percentile": percentile, "refresh": "step"}
    loop = captured(world, tmp_path / "run", scope=scope, **{**HARD, **changes})
    gradient: Any = loop.gradient
    seen: list[tuple[set[tuple[str, int]], set[tuple[str, int]]]] = []
    expected: set[tuple[str, int]] = set()
    before: dict[str, torch.Tensor] = {}

    def noted(model: Any, parts: Any) -> Any:
        nonlocal expected, before
        before = {name: parameter.detach().clone() for name, parameter in loop.moving.items()}
        slopes = dict(zip(loop.moving, gradient.forget(model, parts).tensors, strict=True))
        norms = {(name, row): float(one.norm()) for name, slope in slopes.items() for row, one in enumerate(slope)}
        place = -(-int(percentile) * (len(norms) - 1) // 100)
        threshold = sorted(norms.values())[place]
        expected = {unit for unit, norm in norms.items() if norm >= threshold}
        return gradient(model, parts)

    def looked(line: dict[str, Any]) -> None:
        now = {name: parameter.detach() for name, parameter in loop.moving.items()}
        seen.append((changed_units(before, now), expected))
        assert line["active_units"] == len(expected)

    loop.gradient, loop.log, loop.checkpoints = noted, looked, None
    run_loop(loop)
    assert len(seen) == 6 and all(moved == wanted for moved, wanted in seen)
    if percentile == 100:
        assert all(len(moved) == 1 for moved, _ in seen)
    else:
        assert len({frozenset(moved) for moved, _ in seen}) > 1, "maps differ from step to step"


@pytest.mark.parametrize("changes", [{"scope": STEP}, {"scope": STEP, "master_dtype": "param", "model": "half"}, {"scope": {**STEP, "granularity": "element"}, "rate": {"name": "gen", "every": 2}}], ids=str)  # fmt: skip
def test_a_killed_run_with_a_map_for_every_step_continues_to_the_same_bits(
    world: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if changes.get("model") == "half":
        changes = {**changes, "model": save_model_folder(make_model("llama"), tmp_path / "half", dtype=torch.bfloat16)}
    straight = run(world, tmp_path / "straight", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "killed", progress=Interrupt(at=3), **changes)
    again = run(world, tmp_path / "killed", **changes)
    assert weights(again.folder) == weights(straight.folder) and metrics(again.folder) == metrics(straight.folder)


def test_where_nothing_is_left_to_forget_nothing_moves(world: World, tmp_path: Path) -> None:
    scope = {**STEP, "percentile": 30.0}
    loop = captured(world, tmp_path / "run", scope=scope, method={"name": "npo", "until": 1e-6}, **HARD)
    before = {name: bits(parameter) for name, parameter in loop.moving.items()}
    lines: list[dict[str, Any]] = []
    loop.log, loop.checkpoints = lines.append, None
    run_loop(loop)
    assert {name: bits(parameter) for name, parameter in loop.moving.items()} == before
    assert [line["active_units"] for line in lines] == [0.0] * 6


# --- both


@pytest.mark.parametrize("changes", [{"scope": SURE}, {"through": "int4"}, {"scope": SURE, "through": "fp4", "smooth": "sam"}], ids=str)  # fmt: skip
def test_a_killed_run_continues_to_the_same_bits(world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
    straight = run(world, tmp_path / "straight", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "killed", progress=Interrupt(at=3), **changes)
    again = run(world, tmp_path / "killed", **changes)
    assert weights(again.folder) == weights(straight.folder) and metrics(again.folder) == metrics(straight.folder)


def rounded(folder: Path) -> Any:
    model = load_model(folder)
    with torch.no_grad():
        for layer in decoder_linears(model).values():
            layer.weight.copy_(
                as_matrix(layer, fake_quantize(as_matrix(layer, layer.weight).contiguous(), Grid(bits=4)))
            )
    return model


def test_through_a_grid_the_losses_are_the_rounded_models(world: World, tmp_path: Path) -> None:
    """At the first step NPO's loss is 2 / beta log 2: the reference of its log-ratio is rounded too."""
    made = run(world, tmp_path / "run", through="int4", steps=2)
    first = metrics(made.folder)[0]
    assert first["forget_loss"] == pytest.approx(2 * 0.6931472, rel=1e-6)
    plain = metrics(run(world, tmp_path / "plain", steps=2).folder)[0]
    assert first["retain_loss"] != pytest.approx(plain["retain_loss"], rel=1e-6)
    loop: Loop = captured(world, tmp_path / "again", steps=2)
    parts = loop.parts(0)
    with torch.no_grad():
        other = rounded(saved("llama"))
        losses = []
        for batch in parts["retain"]:
            labels = torch.full_like(batch.ids, -100)
            labels[batch.label_row, batch.label_column + 1] = batch.label_ids
            for ids, mask, own in zip(batch.ids, batch.attention_mask, labels, strict=True):
                said = other(input_ids=ids[None], attention_mask=mask[None], labels=own[None])
                losses.append(float(said.loss))
    assert first["retain_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_what_is_saved_is_not_rounded(world: World, tmp_path: Path) -> None:
    made = run(world, tmp_path / "run", through="int4", steps=2)
    model = load_model(made.folder)
    layer = next(iter(decoder_linears(model).values()))
    assert len(torch.unique(layer.weight[0])) > 16
    assert not torch.equal(fake_quantize(layer.weight, Grid(bits=4)), layer.weight)


def test_a_grid_that_is_none_is_refused_before_anything(world: World, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'int9' is not a grid\. Known: int2 to int8"):
        run(world, tmp_path / "run", through="int9")
    assert not (tmp_path / "run").exists()


def test_a_run_whose_units_come_out_otherwise_is_not_continued(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may sum otherwise; what was trained would be written into other rows."""
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "run", scope=SURE, progress=Interrupt(3))
    choose = module.active_units

    def otherwise(*given: Any) -> dict[str, Active]:
        found = choose(*given)
        name, one = next((name, one) for name, one in found.items() if 0 not in one.index)
        return {
            **found,
            name: Active(torch.cat([torch.zeros(1, dtype=torch.long), one.index[1:]]), one.dim, one.is_flat),
        }

    with monkeypatch.context() as patch:
        patch.setattr(module, "active_units", otherwise)
        with pytest.raises(BadInput, match="the units that may move came out otherwise than when the run began"):
            run(world, tmp_path / "run", scope=SURE)
    assert run(world, tmp_path / "run", scope=SURE).steps == run(world, tmp_path / "straight", scope=SURE).steps
