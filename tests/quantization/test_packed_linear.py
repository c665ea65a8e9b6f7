"""Codes that are multiplied with as they are: against float64, in every group, in files, and what stays dense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from letheon.errors import BadInput
from letheon.numerics.grids import Grid, Quantized, dequantize, quantize
from letheon.quantization.packed_linear import PackedLinear, why_not
from letheon.quantization.pipeline import quantize as quantize_folder
from letheon.quantization.reading import load_low_bit, load_packed, read_low_bit
from letheon.runs.progress import Progress
from tests.quantization.low_bit import low_bit_model, tiny_llama, written

IDS = torch.arange(2, 34).reshape(2, 16)


def layer_of(rows: int, columns: int, **grid: Any) -> Quantized:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))
    found = quantize(weight, Grid(bits=4, scale_dtype="bfloat16", **grid))
    # As files have it: codes from 0 to 15, and the code that stands for 0.
    offset = 0 if found.grid.scheme == "asym" else 8  # type: ignore[union-attr]
    return replace(
        found,
        codes=found.codes + offset,
        zero=found.zero + offset,
        grid=Grid(bits=4, scheme="asym", group=grid.get("group", "row")),
    )


@pytest.mark.parametrize("group", ["row", 32, 64, 128, 256, 512])
@pytest.mark.parametrize("scheme", ["sym", "asym"])
@pytest.mark.parametrize("tokens", [(1,), (2, 5)])
def test_it_is_the_dequantized_layer_to_the_digits_of_bfloat16(
    group: Any, scheme: str, tokens: tuple[int, ...]
) -> None:
    layer = layer_of(48, 512, group=group, scheme=scheme)
    x = torch.randn(*tokens, 512, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).float()
    bias = torch.randn(48)
    found = PackedLinear(layer, bias)(x)
    wanted = x.double() @ dequantize(layer).double().T + bias
    error = (found.double() - wanted).norm() / (wanted - bias).norm()
    assert found.dtype == x.dtype and found.shape == (*tokens, 48) and error < 5e-3
    other = x.double() @ dequantize(replace(layer, zero=layer.zero + 1)).double().T + bias
    assert (found.double() - other).norm() / (wanted - bias).norm() > 0.02, (
        "a zero point that is off by one goes unseen"
    )


def test_it_takes_an_eighth_of_the_memory() -> None:
    packed = PackedLinear(layer_of(256, 512, group=128), None)
    assert sum(tensor.nbytes for tensor in packed.buffers()) < 256 * 512 * 4 / 7


@pytest.mark.parametrize(
    ("module", "layer", "said"),
    [
        (Conv1D(32, 64), layer_of(32, 64), "stored as (in, out)"),
        (nn.Linear(64, 24), layer_of(24, 64), "its 24 outputs are no multiple of 16"),
        (nn.Linear(64, 32), layer_of(32, 64, group=16), "its groups of 16 inputs are no multiple of 32"),
        (nn.Linear(64, 32), replace(layer_of(32, 64), grid=Grid(bits=3)), "its codes are of 3 bits"),
        (
            nn.Linear(64, 32),
            replace(layer_of(32, 64), group_index=torch.zeros(64, dtype=torch.int32)),
            "do not lie side by side",
        ),
    ],
)
def test_what_stays_dense_says_why(module: nn.Module, layer: Quantized, said: str) -> None:
    assert said in why_not(module, layer)


@pytest.mark.parametrize("form", ["compressed_tensors", "gptq", "awq"])
def test_a_file_runs_on_its_codes(form: str, tmp_path: Path) -> None:
    scales = "float32" if form == "compressed_tensors" else "float16"
    folder = written(form, low_bit_model(tiny_llama(), Grid(bits=4, group=32, scale_dtype=scales)), tmp_path / form)
    model, left = load_packed(folder)
    dense = load_low_bit(folder)
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert packed and len(packed) + len(left) == len(list(read_low_bit(folder).rounded()))
    with torch.no_grad():
        found, wanted = (torch.as_tensor(one(input_ids=IDS).logits) for one in (model, dense))
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 2e-2


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["compressed_tensors", "gptq"])
def test_a_file_runs_exactly_on_its_codes(form: str, bits: int, tmp_path: Path) -> None:
    scales = "float32" if form == "compressed_tensors" else "float16"
    folder = written(form, low_bit_model(tiny_llama(), Grid(bits=bits, group=32, scale_dtype=scales)), tmp_path / form)
    model, left = load_packed(folder, exact=True)
    with torch.no_grad():
        found, wanted = (torch.as_tensor(one(input_ids=IDS).logits) for one in (model, load_low_bit(folder)))
    assert not left and not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_values_of_a_half_precision_file_are_its_own(dtype: torch.dtype, tmp_path: Path) -> None:
    grid = Grid(bits=4, group=32, scheme="asym", scale_dtype=str(dtype)[6:])  # type: ignore[arg-type]
    folder = written("compressed_tensors", low_bit_model(tiny_llama(dtype), grid), tmp_path / "out")
    model, _ = load_packed(folder, exact=True)
    with torch.no_grad():
        found, wanted = (torch.as_tensor(one(input_ids=IDS).logits) for one in (model, load_low_bit(folder)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_activations_are_rounded_exactly_before_codes_too(tmp_path: Path) -> None:
    made = quantize_folder(tiny_llama(), act_bits=4, out=tmp_path, progress=Progress(quiet=True))
    model, left = load_packed(made.folder, exact=True)
    wanted = load_low_bit(made.folder)
    hooked = [name for name, module in wanted.named_modules() if module._forward_pre_hooks]
    assert hooked and not left
    assert [name for name, module in model.named_modules() if module._forward_pre_hooks] == hooked


def test_activations_are_rounded_before_codes_too(tmp_path: Path) -> None:
    made = quantize_folder(tiny_llama(), act_bits=4, out=tmp_path, progress=Progress(quiet=True))
    model, _ = load_packed(made.folder)
    with torch.no_grad():
        found, wanted = (torch.as_tensor(one(input_ids=IDS).logits) for one in (model, load_low_bit(made.folder)))
    near = float((found - wanted).norm() / wanted.norm())
    for module in model.modules():
        module._forward_pre_hooks.clear()
    with torch.no_grad():
        plain = torch.as_tensor(model(input_ids=IDS).logits)
    assert near < 0.75 * float((plain - wanted).norm() / wanted.norm())


def test_formats_that_give_no_codes_are_refused(tmp_path: Path) -> None:
    folder = written("dense", low_bit_model(tiny_llama(), Grid(bits=4)), tmp_path / "dense")
    with pytest.raises(BadInput, match=r"the codes of format dense are read as values alone\. Use a file of format"):
        load_packed(folder)
