"""A bfloat16 file held as it is stored: what moves has float32 copies, what does not move keeps the file's own bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from letheon.errors import BadInput, CannotFinish
from letheon.models import load_model
from letheon.runs.record import RunFolder
from letheon.training.loop import Loop, run_loop
from letheon.training.low_rank import low_rank_layers
from letheon.unlearning.forget import check_request
from tests.architectures.models import make_model, save_model_folder
from tests.toys import bits
from tests.unlearning.test_forget import Interrupt, World, captured, metrics, run, settings, weights

SURE = {"name": "sure", "percentile": 80.0}
ADAPTER = {"name": "adapter", "rank": 4}
CASES: dict[str, dict[str, Any]] = {
    "few rows": {"scope": SURE},
    "few rows, others every step": {"scope": {**SURE, "refresh": "step"}},
    "adapter": {"scope": ADAPTER},
    "layers": {"scope": {"name": "layers", "patterns": ["*.mlp.*"]}},
    "few rows, ngdiff": {"scope": SURE, "balance": "ngdiff"},
    "adapter, through a grid": {"scope": ADAPTER, "through": "int4"},
    "all, as the file has them": {"master_dtype": "param"},
    "all, with copies": {"smooth": {"name": "weight_average", "start": 2, "every": 1}},
}


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(make_model("llama"), tmp_path_factory.mktemp("half") / "m", dtype=torch.bfloat16)


def stored(world: World, out: Path, half: Path, **changes: Any) -> Any:
    return run(world, out, model=half, weights="stored", **changes)


@pytest.mark.parametrize("case", CASES)
def test_a_run_moves_what_it_may_and_is_the_same_after_a_kill(
    case: str, world: World, half: Path, tmp_path: Path
) -> None:
    made = stored(world, tmp_path / "run", half, **CASES[case])
    before, after = load_file(half / "model.safetensors"), load_file(made.folder / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    changed = {name for name in before if bits(before[name]) != bits(after[name])}
    assert changed
    if case == "layers":
        assert changed == {name for name in before if ".mlp." in name}
    if case == "few rows":
        rows = sum(bits(a) != bits(b) for name in before for a, b in zip(before[name], after[name], strict=True))
        assert 0 < rows <= 0.21 * sum(len(tensor) for tensor in before.values())
    with pytest.raises(KeyboardInterrupt):
        stored(world, tmp_path / "killed", half, progress=Interrupt(3), **CASES[case])
    again = stored(world, tmp_path / "killed", half, **CASES[case])
    assert weights(again.folder) == weights(made.folder) and metrics(again.folder) == metrics(made.folder)


@pytest.mark.parametrize("scope", [SURE, ADAPTER], ids=["few rows", "adapter"])
def test_the_model_is_half_precision_and_what_moves_is_not(
    world: World, half: Path, tmp_path: Path, scope: Any
) -> None:
    loop: Loop = captured(world, tmp_path / "run", model=half, weights="stored", scope=scope)
    assert loop.movers is not None and {mover.dtype for mover in loop.movers} == {torch.float32}
    kept = [parameter for name, parameter in loop.model.named_parameters() if ".lora_" not in name]
    assert {parameter.dtype for parameter in kept} == {torch.bfloat16}
    run_loop(loop)
    began_at_a_stored_value = [mover for name, mover in loop.movers.of.items() if ".lora_A." not in name]  # B: 0
    assert any(not torch.equal(mover.bfloat16().float(), mover) for mover in began_at_a_stored_value)
    assert bool(low_rank_layers(loop.model)) == (scope is ADAPTER)


@pytest.mark.parametrize("scope", [SURE, ADAPTER], ids=["few rows", "adapter"])
def test_what_the_file_loses_is_counted_from_what_was_trained(
    world: World, half: Path, tmp_path: Path, scope: Any
) -> None:
    """Counted from the rounded model, nothing would ever be lost."""
    made = stored(world, tmp_path / "run", half, scope=scope, learning_rate=1e-3, steps=3)
    kept = RunFolder.open(made.folder.parent).record().stages[0].notes["survival"]
    assert 0 < kept["survived"] < kept["moved"]
    wide = stored(world, tmp_path / "wide", half, scope=scope, learning_rate=1e-3, steps=3, save_dtype="float32")
    file = load_file(wide.folder / "model.safetensors")
    assert {tensor.dtype for tensor in file.values()} == {torch.float32}
    assert all(torch.equal(file[name].bfloat16(), tensor) for name, tensor in load_file(made.folder / "model.safetensors").items())  # fmt: skip
    assert any(not torch.equal(tensor.bfloat16().float(), tensor) for tensor in file.values())
    with pytest.raises(CannotFinish, match="still differ from the original once they are stored as bfloat16"):
        stored(world, tmp_path / "tiny", half, scope=scope, learning_rate=1e-6, steps=1)


def test_what_is_lost_is_counted_of_tied_weights_as_well(world: World, tmp_path: Path) -> None:
    """The file has one name for a tied weight, the model two."""
    tied = save_model_folder(make_model("llama_tied"), tmp_path / "m", dtype=torch.bfloat16)
    scope = {"name": "layers", "patterns": ["model.embed_tokens.weight"]}
    given: dict[str, Any] = {"model": tied, "scope": scope, "learning_rate": 2e-4, "steps": 3}
    kept = [
        RunFolder.open(run(world, tmp_path / held, weights=held, **given).folder.parent).record().stages[0].notes
        for held in ("float32", "stored")
    ]
    wide, stored_ = (notes["survival"] for notes in kept)
    assert 0 < stored_["survived"] < stored_["moved"]
    assert stored_["survived"] / stored_["moved"] == pytest.approx(wide["survived"] / wide["moved"], abs=0.1)


def test_it_goes_the_way_of_float32_but_for_rounding(world: World, half: Path, tmp_path: Path) -> None:
    """The first losses are those of the same weights in other arithmetic."""
    one = metrics(stored(world, tmp_path / "stored", half, scope=SURE).folder)
    other = metrics(run(world, tmp_path / "wide", model=half, scope=SURE).folder)
    assert one[0]["retain_loss"] == pytest.approx(other[0]["retain_loss"], rel=2e-3)
    for a, b in zip(one, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.1)


def test_a_perturbation_that_the_model_cannot_hold_is_an_error_and_a_large_one_is_not(
    world: World, half: Path, tmp_path: Path
) -> None:
    smooth = {"name": "sam", "rho": 1e-4}
    with pytest.raises(CannotFinish, match=r"weights in torch\.bfloat16 cannot hold a perturbation so small"):
        stored(world, tmp_path / "small", half, scope=SURE, smooth=smooth)
    stored(world, tmp_path / "large", half, scope=SURE, smooth={"name": "sam", "rho": 3.0}, steps=2)
    stored(world, tmp_path / "beside", half, scope=ADAPTER, smooth=smooth, steps=2)  # float32 factors hold it


def test_when_the_file_decides(world: World, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def held_as(device: str = "cpu", **changes: Any) -> str:
        monkeypatch.setattr("letheon.unlearning.forget.own_device", lambda asked: device)
        return check_request(settings(world, tmp_path / "run", **{"model": half, **changes})).held_as

    assert held_as() == "float32" and held_as(weights="stored") == "stored"
    assert held_as("cuda") == "float32"  # everything moves, so everything has a copy
    for scope in (SURE, ADAPTER, "layers"):
        assert (held_as("cuda", scope=scope), held_as(scope=scope)) == ("stored", "float32")
        assert held_as("cuda", scope=scope, weights="float32") == "float32"
    assert held_as("cuda", scope={**SURE, "refresh": "step"}) == "float32"
    for between in ({"smooth": "sam"}, {"smooth": "curvature"}, {"balance": "ngdiff", "rate": "gen", "steps": 3}):
        assert held_as("cuda", scope=SURE, **between) == "float32"
    assert held_as("cuda", scope=ADAPTER, smooth="sam") == "stored"  # its factors are float32
    with pytest.raises(BadInput, match=r"rate 'gen' looks at how the retain loss bends.*--weights float32"):
        held_as(scope=SURE, balance="ngdiff", rate="gen", steps=3, weights="stored")
    assert held_as("cuda", master_dtype="param") == "stored"
    for name in ("RANK", "WORLD_SIZE"):  # shares of a weight are held in float32
        monkeypatch.setenv(name, "2")
    assert held_as("cuda", scope="layers") == held_as("cuda", master_dtype="param") == "float32"
    monkeypatch.undo()
    assert check_request(settings(world, tmp_path / "run", weights="stored")).held_as == "float32"  # a float32 file
    with pytest.raises(BadInput, match="weights"):
        check_request(settings(world, tmp_path / "run", weights="int8"))


def test_under_autocast_it_runs_as_on_a_gpu(
    world: World, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float32 copies, bfloat16 weights and autocast side by side; on a GPU that is the usual way."""
    monkeypatch.setattr("letheon.training.prepare.working_dtype", lambda device: torch.bfloat16)
    for name, scope in (("rows", SURE), ("adapter", ADAPTER)):
        made = stored(world, tmp_path / name, half, scope=scope, retain_term="klr")
        assert metrics(made.folder)[-1]["forget_loss"] < metrics(made.folder)[0]["forget_loss"]
        load_model(made.folder)


def test_a_scope_of_ones_own_may_look_at_values(world: World, tmp_path: Path) -> None:
    """It is asked before weights are loaded, and cannot answer then."""
    (tmp_path / "mine.py").write_text(LARGE, encoding="utf-8")
    made = run(world, tmp_path / "run", scope=str(tmp_path / "mine.py"), steps=1)
    assert made.steps == 1


LARGE = '''"""Tensors of large weights."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Large:
    """Settings."""

    def select(self, model):
        """Name -> parameter."""
        return {name: one for name, one in model.named_parameters() if float(one.detach().abs().mean()) > 0.0}

    def init(self, model, moving):
        """No state."""
        return {}

    def after_step(self, moving, state):
        """Nothing."""
'''
