"""How many codes are the original's, and how far weights moved in steps: by hand, and where it cannot be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig

from letheon.audits.codes import code_figures
from letheon.models import as_matrix, decoder_linears, inspect_model, load_model
from letheon.numerics.grids import CodebookGrid, Grid
from letheon.quantization.pipeline import quantize
from letheon.runs.progress import Progress
from letheon.training.train import train
from tests.architectures.models import _BLOCKS, make_from, make_model, mixture, save_model_folder, saved
from tests.toys import write_lines

GRIDS = {"int4": Grid(bits=4), "int8": Grid(bits=8), "nf4": CodebookGrid("nf4")}
NOTHING = {"code_match": None, "shift_in_steps": None}


def moved(name: str, folder: Path, steps: float) -> Path:
    """Every linear weight but each row's largest, moved by a share of its int4 step."""
    model = make_model(name)
    with torch.no_grad():
        for module in decoder_linears(model).values():
            matrix = as_matrix(module, module.weight).clone()  # type: ignore[arg-type]
            largest = matrix.abs().amax(dim=1, keepdim=True)
            matrix += torch.where(matrix.abs() == largest, 0.0, steps * largest / 7)
            module.weight.copy_(as_matrix(module, matrix))  # type: ignore[union-attr,operator]
    return save_model_folder(model, folder)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_model_and_itself(name: str) -> None:
    folder = inspect_model(saved(name))
    figures = code_figures(load_model(folder.path), folder, folder, GRIDS)
    assert figures["int4"] == figures["int8"] == {"code_match": 1.0, "shift_in_steps": 0.0}
    assert figures["nf4"] == {"code_match": 1.0, "shift_in_steps": None}  # 16 uneven values have no step


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_half_a_step_changes_half_the_codes(name: str, tmp_path: Path) -> None:
    original, subject = inspect_model(saved(name)), inspect_model(moved(name, tmp_path, 0.5))
    figures = code_figures(load_model(original.path), original, subject, GRIDS)["int4"]
    assert figures["code_match"] == pytest.approx(0.5, abs=0.04)
    assert figures["shift_in_steps"] == pytest.approx(0.5, abs=0.03)  # of the row of outputs, in Conv1D as well
    fine = code_figures(load_model(original.path), original, subject, GRIDS)["int8"]
    assert fine["shift_in_steps"] == pytest.approx(0.5 * 127 / 7, rel=0.05) and (fine["code_match"] or 0) < 0.1


@pytest.mark.parametrize(("name", "moved_layer"), [("llama", "0.mlp.down_proj"), ("gpt2", "0.mlp.c_fc")])
def test_a_layer_counts_by_its_weights_and_is_measured_along_its_inputs(
    name: str, moved_layer: str, tmp_path: Path
) -> None:
    """One layer is moved, unlike the others in shape; both numbers again by loops over its outputs."""
    model = make_model(name)
    linears = decoder_linears(model)
    (layer,) = (module for key, module in linears.items() if key.endswith(moved_layer))
    old = layer.weight.detach().clone()  # type: ignore[operator,union-attr]
    noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(0))
    new = old + 0.01 * noise
    with torch.no_grad():
        layer.weight.copy_(new)  # type: ignore[operator,union-attr]
    original, subject = inspect_model(saved(name)), inspect_model(save_model_folder(model, tmp_path))
    figures = code_figures(load_model(original.path), original, subject, GRIDS)["int4"]
    different = steps = 0.0
    for before, after in zip(*(w.t() if name == "gpt2" else w for w in (old, new)), strict=True):
        step, own = before.abs().max() / 7, after.abs().max() / 7
        different += float(((before / step).round() != (after / own).round()).sum())
        steps += float(((after - before).abs() / step).sum())
    total = sum(module.weight.numel() for module in linears.values())  # type: ignore[operator,union-attr]
    assert figures["code_match"] == pytest.approx(1 - different / total, rel=1e-9)
    assert figures["shift_in_steps"] == pytest.approx(steps / total, rel=1e-4)


def test_experts_count_by_their_weights(tmp_path: Path) -> None:
    """One matrix of one expert is moved, and what it is of all the decoder's weights is the share that changes."""
    model = mixture()
    original = inspect_model(save_model_folder(model, tmp_path / "before"))
    experts = model.model.layers[1].mlp.experts
    with torch.no_grad():
        experts.gate_up_proj[2, 48:] *= -1  # the up layer of the third expert
    subject = inspect_model(save_model_folder(model, tmp_path / "after"))
    figures = code_figures(load_model(original.path), original, subject, GRIDS)["int8"]
    total = 2 * (4 * 3 * 48 * 32 + 2 * 32 * 32 + 2 * 16 * 32)  # experts, q and o, k and v of half as many heads
    assert figures["code_match"] == pytest.approx(1 - 48 * 32 / total, abs=0.001)


def test_experts_that_are_not_known_give_nothing(tmp_path: Path) -> None:
    """Attention alone would be called the whole decoder."""
    config = Qwen3MoeConfig(**_BLOCKS, num_experts=4, moe_intermediate_size=16, decoder_sparse_step=1)
    folder = inspect_model(save_model_folder(make_from(config), tmp_path))
    assert code_figures(load_model(tmp_path), folder, folder, GRIDS) == dict.fromkeys(GRIDS, NOTHING)


def test_folders_that_cannot_be_compared_give_nothing_and_no_crash() -> None:
    llama, grouped, gpt2 = (inspect_model(saved(name)) for name in ("llama", "llama_grouped", "gpt2"))
    model = load_model(llama.path)
    assert code_figures(model, gpt2, llama, GRIDS) == dict.fromkeys(GRIDS, NOTHING)  # other names
    assert code_figures(model, grouped, llama, GRIDS) == dict.fromkeys(GRIDS, NOTHING)  # other shapes
    assert code_figures(model, llama, llama, {"int4": Grid(bits=4, group=32)}) == {"int4": NOTHING}  # 48 inputs


def test_weights_in_another_basis_are_not_compared(tmp_path: Path) -> None:
    made = quantize(saved("llama"), rotation="hadamard", format="dense", out=tmp_path, progress=Progress(quiet=True))
    original, subject = inspect_model(saved("llama")), inspect_model(made.folder)
    found = code_figures(load_model(made.folder), original, subject, {"int4": Grid(bits=4)})
    assert found == {"int4": {"code_match": None, "shift_in_steps": None}}


def test_nor_are_those_of_a_model_that_was_trained_in_another_basis(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "d.jsonl", [{"text": f"Line {number} of a text."} for number in range(8)])
    given: dict[str, Any] = {"through": "w4a4kv4", "epochs": 1, "device": "cpu", "progress": Progress(quiet=True)}
    turned = train(saved("llama"), data=lines, rotation="hadamard", out=tmp_path / "turned", **given).folder
    plain = train(saved("llama"), data=lines, out=tmp_path / "plain", **given).folder
    original = inspect_model(saved("llama"))
    for folder, is_comparable in ((turned, False), (plain, True)):
        found = code_figures(load_model(folder), original, inspect_model(folder), {"int4": Grid(bits=4)})
        assert (found["int4"]["code_match"] is not None) == is_comparable
