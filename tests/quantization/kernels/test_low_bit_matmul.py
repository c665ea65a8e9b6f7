"""Products with codes: against a slow float64 product with the weights they stand for."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon.errors import BadInput, MissingExtra
from letheon.numerics.grids import CodebookGrid, Grid, Quantized, dequantize, quantize
from letheon.quantization.kernels import low_bit_compiled, low_bit_matmul
from letheon.quantization.kernels.low_bit_compiled import fill_compiled, multiply_compiled
from letheon.quantization.kernels.low_bit_matmul import FEW, multiply, way_for
from letheon.quantization.kernels.packed_codes import pack_codes, values, why_unpackable

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def layer_of(
    rows: int, columns: int, *, dtype: torch.dtype = torch.float32, size: float = 1.0, **grid: Any
) -> Quantized:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)) * size
    weight += 0.3 * size  # zero points off the middle
    return quantize(weight.to(dtype), Grid(**{"bits": 4, "scheme": "asym", **grid}))


def slowly(x: torch.Tensor, layer: Quantized) -> torch.Tensor:
    return x.double() @ dequantize(layer).double().T


def tokens(count: int, columns: int) -> torch.Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("scheme", ["sym", "sym_centred", "asym"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), [(4, "row"), (4, 2), (4, 24), (4, "tensor"), (8, "row"), (8, 3), (8, 24)])
def test_packed_codes_stand_for_the_same_weights_to_the_bit(bits: int, group: Any, dtype: Any, scheme: Any) -> None:
    layer = layer_of(5, 72, bits=bits, group=group, scheme=scheme, dtype=dtype)
    packed = pack_codes(layer)
    assert packed.shape == (5, 72) and packed.group == (72 if isinstance(group, str) else group)
    assert torch.equal(values(packed), dequantize(layer).float())
    assert torch.equal(values(packed, slice(1, 3)), dequantize(layer).float()[1:3])
    assert packed.codes.numel() == 5 * 72 * bits // 8


# Steps of 1e-7 make weights that float16 holds only as subnormal numbers.
@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), [(4, "row"), (4, 6), (4, 32), (8, "row"), (8, 9), (8, 48)])
def test_the_compiled_product_is_exact(bits: int, group: Any, dtype: Any, size: float) -> None:
    layer = layer_of(11, 288, bits=bits, group=group, dtype=dtype, size=size)
    packed = pack_codes(layer)
    for count in (1, 3, 4, 9):
        x = tokens(count, 288)
        found, wanted = multiply_compiled(x, packed), slowly(x, layer)
        assert found.dtype == torch.float32 and found.shape == (count, 11)
        assert float((found.double() - wanted).norm() / wanted.norm()) < 3e-7
    # One weight at a time, nothing is summed: the bits themselves.
    assert torch.equal(multiply_compiled(torch.eye(288), packed).T, dequantize(layer).float())
    assert torch.equal(multiply_compiled(torch.eye(288)[:1], packed).T, dequantize(layer).float()[:, :1])


def test_threads_share_the_rows_and_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letheon.quantization.kernels.low_bit_compiled._AT_LEAST", 1)
    packed, x = pack_codes(layer_of(7, 64, group=16)), tokens(5, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = multiply_compiled(x, packed)
        for threads in (2, 3, 9):
            torch.set_num_threads(threads)
            assert torch.equal(multiply_compiled(x, packed), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layer_of(4, 8, bits=3), "its codes are of 3 bits, and 4 or 8 are packed"),
        (layer_of(4, 8, bits=16), "its codes are of 16 bits"),
        (quantize(torch.ones(4, 16), CodebookGrid("nf4")), "its codes stand for the table nf4, not for steps"),
        (layer_of(4, 9, group=3), "its groups of 3 inputs cannot be halved"),
        (layer_of(4, 8, dtype=torch.float64), "its weights are torch.float64"),
        (replace(layer_of(4, 8), group_index=torch.zeros(8, dtype=torch.int32)), "inputs that do not lie side by side"),
    ],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused_by_its_reason(layer: Quantized, reason: str) -> None:
    assert reason in why_unpackable(layer)
    with pytest.raises(BadInput, match=f"cannot run on its codes: .*{reason}.* Run it on the weights they stand for"):
        pack_codes(layer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "group"), [(4, "row"), (4, 6), (8, 9)])
def test_the_compiled_weights_are_those_of_the_layer(bits: int, group: Any, dtype: Any) -> None:
    layer = layer_of(9, 288, bits=bits, group=group, dtype=dtype)
    wide = torch.full((6, 288), 77.0)
    fill_compiled(pack_codes(layer), slice(2, 6), wide[1:5])
    assert torch.equal(wide[1:5], dequantize(layer).float()[2:6])
    assert bool((wide[[0, 5]] == 77).all())


@pytest.mark.parametrize("has_numba", [True, False])
@pytest.mark.parametrize("count", [0, 1, FEW, FEW + 1, 40])
@pytest.mark.parametrize("bits", [4, 8])
def test_every_way_is_exact(bits: int, count: int, has_numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_bit_matmul, "_TILE", 64 * 5)  # 17 rows: three tiles and a rest
    monkeypatch.setattr(low_bit_matmul, "is_there", lambda: has_numba)
    layer = layer_of(17, 64, bits=bits, group=16, dtype=torch.bfloat16)
    x, packed = tokens(count, 64), pack_codes(layer)
    wanted = slowly(x, layer)
    for way in (None, "tiles", "compiled"):
        found = multiply(x, packed, way=way)  # type: ignore[arg-type]
        assert found.dtype == torch.float32 and found.shape == (count, 17)
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["compiled", "tiles"])
def test_half_precision_comes_back_as_it_went_in(way: Any) -> None:
    layer = layer_of(6, 64, dtype=torch.bfloat16)
    x = tokens(3, 64).bfloat16()
    found = multiply(x, pack_codes(layer), way=way)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), slowly(x, layer), rtol=2**-7, atol=2**-5)


def test_the_way_follows_from_the_device_and_the_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert way_for("cpu", 1) == way_for("cpu", FEW) == "compiled"
    assert way_for("cpu", FEW + 1) == way_for("cuda", 1) == "tiles"
    monkeypatch.setattr(low_bit_matmul, "is_there", lambda: False)
    assert way_for("cpu", 1) == "tiles"


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x = pack_codes(layer_of(4, 64)), tokens(1, 64)
    with pytest.raises(BadInput, match="63 inputs do not fit a layer of 64"):
        multiply(x[:, 1:], packed)
    with pytest.raises(BadInput, match=r"'fast' is no way to multiply with codes\. Use compiled, tiles, triton"):
        inspect.unwrap(multiply)(x, packed, way="fast")
    monkeypatch.setattr(low_bit_matmul, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="the way 'triton' needs the package triton, which is not installed"):
        multiply(x, packed, way="triton")
    monkeypatch.setattr(low_bit_compiled, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"the compiled product with codes needs .*'letheon\[quantize\]'"):
        multiply(x, packed, way="compiled")
    elsewhere = replace(packed, **{name: getattr(packed, name).to("meta") for name in ("codes", "scale", "zero")})
    with pytest.raises(BadInput, match=r"the way 'compiled' is for the CPU, and the layer is on meta\. Use 'tiles'"):
        multiply(x, elsewhere, way="compiled")
