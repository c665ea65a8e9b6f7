"""Layers that run on their codes: against the dense model, in every dtype, and what stays dense."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from letheon.errors import BadInput
from letheon.numerics.grids import Grid, Quantized, dequantize
from letheon.quantization.low_bit_linear import LowBitLinear, is_faster, run_on_codes, why_dense
from tests.quantization.kernels.test_low_bit_matmul import layer_of, tokens
from tests.quantization.low_bit import greedy, in_memory, low_bit_model, tiny_llama

IDS = torch.arange(2, 34).reshape(2, 16)


def pair(grid: Grid, **kwargs: Any) -> tuple[Any, Any, dict[str, str]]:
    """The dense model, the one on its codes, and what stayed dense in it."""
    model = low_bit_model(tiny_llama(), grid)
    dense, codes = in_memory(tiny_llama(), model), in_memory(tiny_llama(), model)
    return dense, codes, run_on_codes(codes, [(f"{name}.weight", one) for name, one in model.layers.items()], **kwargs)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(ids).logits)


def test_it_is_a_linear_layer_with_these_weights() -> None:
    layer, bias = layer_of(12, 64, group=16, dtype=torch.bfloat16), torch.randn(12)
    x = tokens(6, 64).view(2, 3, 64)
    found = LowBitLinear(layer, bias)(x)
    wanted = nn.functional.linear(x.double(), dequantize(layer).double(), bias.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    without = LowBitLinear(layer)
    assert without(x[0, 0]).shape == (12,) and without(x[:, :0]).shape == (2, 0, 12)
    assert not list(without.parameters()) and "bits=4" in repr(without)


def test_steps_are_not_rounded_with_the_model() -> None:
    layer = layer_of(12, 64, group=16)
    module = LowBitLinear(layer, torch.ones(12)).bfloat16()
    assert module.scale.dtype == torch.float32 and module.bias.dtype == torch.bfloat16
    module.float().bias.zero_()
    assert torch.equal(module(torch.eye(64)).T, dequantize(layer))


@pytest.mark.parametrize("grid", [Grid(bits=4, group=32), Grid(bits=8, scheme="asym"), Grid(bits=4, scheme="asym")])
@pytest.mark.parametrize("way", [None, "tiles", "compiled"])
def test_a_model_says_the_same(grid: Grid, way: Any) -> None:
    dense, codes, left = pair(grid, way=way)
    packed = [module for module in codes.modules() if isinstance(module, LowBitLinear)]
    assert len(packed) == 14 and not left
    for ids in (IDS, IDS[:1, :3]):
        torch.testing.assert_close(logits(codes, ids), logits(dense, ids), rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits(codes), logits(dense))


def test_it_continues_as_the_dense_model_does() -> None:
    dense, codes, _ = pair(Grid(bits=4, group=32))
    assert greedy(codes) == greedy(dense)


def test_the_dense_weights_are_gone() -> None:
    _, codes, _ = pair(Grid(bits=4, group=32))
    names = {name for name, _ in codes.named_parameters()}
    assert not any("proj" in name for name in names)
    held = sum(one.nbytes for module in codes.modules() if isinstance(module, LowBitLinear) for one in module.buffers())
    assert (
        held
        < 4 * sum(one.codes.numel() for one in low_bit_model(tiny_llama(), Grid(bits=4, group=32)).layers.values()) / 6
    )


def test_a_gradient_is_refused() -> None:
    module = LowBitLinear(layer_of(12, 64))
    with pytest.raises(BadInput, match=r"gives no gradient\. Use load_low_bit to train through the file"):
        module(tokens(2, 64).requires_grad_())
    _, codes, _ = pair(Grid(bits=4, group=32))
    assert not codes(IDS).logits.requires_grad
    with pytest.raises(BadInput, match=r"in training mode, and layers on their codes learn nothing\. Call eval"):
        run_on_codes(codes.train(), [])


def test_what_is_done_on_the_way_is_done_as_before() -> None:
    layer = layer_of(12, 64)
    model = nn.Sequential(nn.Linear(64, 12)).eval()
    handle = model[0].register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    model[0].register_forward_hook(lambda module, given, found: found + 1)
    bias = model[0].bias.detach()
    assert run_on_codes(model, [("0.weight", layer)]) == {}
    x = tokens(3, 64)
    torch.testing.assert_close(model(x), 2 * x @ dequantize(layer).T + bias + 1)
    handle.remove()
    torch.testing.assert_close(model(x), x @ dequantize(layer).T + bias + 1)


@pytest.mark.parametrize(
    ("module", "layer", "said"),
    [
        (Conv1D(12, 64), layer_of(12, 64), "it is a Conv1D, and its weight may be stored as (in, out)"),
        (nn.Linear(64, 11), layer_of(12, 64), "its weight is (11, 64) and its codes are (12, 64)"),
        (nn.Linear(64, 12), layer_of(12, 64, bits=3), "its codes are of 3 bits, and 4 or 8 are packed"),
        (
            nn.Linear(64, 12),
            replace(layer_of(12, 64), group_index=torch.zeros(64, dtype=torch.int32)),
            "its groups are of inputs that do not lie side by side",
        ),
    ],
)
def test_what_stays_dense_says_why(module: nn.Module, layer: Quantized, said: str) -> None:
    assert why_dense(module, layer) == said
    model = nn.ModuleDict({"only": module}).eval()
    assert run_on_codes(model, [("only.weight", layer)]) == {"only": said}
    assert model["only"] is module


def test_only_what_was_measured_to_be_faster_is_taken_if_asked() -> None:
    assert is_faster("cpu", (4096, 4096), 1) and is_faster("cpu", (2048, 2048), 8)
    assert not is_faster("cpu", (1024, 1024), 1) and not is_faster("cpu", (4096, 4096), 9)
    assert not is_faster("cuda", (4096, 4096), 1)
    dense, codes, left = pair(Grid(bits=4, group=32), only_faster=True)
    assert set(left.values()) == {"on its codes it is not known to be faster on cpu"} and len(left) == 14
    assert torch.equal(logits(codes), logits(dense))


def test_codes_of_another_model_are_refused() -> None:
    with pytest.raises(BadInput, match=r"model\.nowhere is no part of the model\. Give the codes of the file"):
        run_on_codes(nn.Sequential().eval(), [("model.nowhere.weight", layer_of(12, 64))])
