"""The clip search against a loop over single groups, limits and tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.numerics.grids import Grid, fake_quantize
from letheon.quantization import clipping
from letheon.quantization.clipping import clip_limits, clipped


def layer(seed: int = 0, *, rows: int = 5, inputs: int = 12, tokens: int = 9) -> tuple[Tensor, Tensor]:
    """Inputs are of unequal power."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator)
    return weight, torch.randn(tokens, inputs, generator=generator) * torch.linspace(0.1, 2, inputs)


def slow_limits(weight: Tensor, inputs: Tensor, grid: Grid, size: int) -> list[list[float]]:
    found = []
    for row in weight:
        limits = []
        for begin in range(0, len(row), size):
            some, heard = row[begin : begin + size], inputs[:, begin : begin + size].double()
            best, least = 0.0, float("inf")
            for trial in range(10):
                limit = some.abs().max() * (1 - trial / 20)
                rounded = fake_quantize(some.clamp(-limit, limit)[None], Grid(bits=grid.bits, scheme=grid.scheme))[0]
                error = sum(float((token @ (rounded - some).double()) ** 2) for token in heard) / len(heard)
                if error < least:
                    best, least = float(limit), error
            limits.append(best)
        found.append(limits)
    return found


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("scheme", ["asym", "sym", "sym_clipped", "sym_centred"])
@pytest.mark.parametrize(("group", "size"), [("row", 12), (4, 4)])
def test_every_group_gets_the_limit_that_a_loop_finds(bits: int, scheme: Any, group: Any, size: int) -> None:
    weight, inputs = layer(bits)
    grid = Grid(bits=bits, scheme=scheme, group=group)
    found = clip_limits(weight, inputs, grid)
    torch.testing.assert_close(found, torch.tensor(slow_limits(weight, inputs, grid, size)))
    assert bool((found < weight.reshape(5, -1, size).abs().amax(dim=-1)).any())


def test_rows_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = layer(1, rows=7)
    grid = Grid(bits=3, scheme="asym", group=4)
    found = clip_limits(weight, inputs, grid)
    assert torch.equal(clip_limits(weight.flip(0), inputs, grid).flip(0), found)
    monkeypatch.setattr(clipping, "_AT_ONCE", 2 * 3 * len(inputs))
    torch.testing.assert_close(clip_limits(weight, inputs, grid), found)


def test_nothing_is_cut_where_nothing_is_gained() -> None:
    """A group on its grid loses nothing at the widest limit, and of equals the first is kept; nor does one of zeros."""
    weight, inputs = layer(2)
    grid = Grid(bits=4, group=4)
    exact = fake_quantize(weight, grid)
    exact[0] = 0
    assert torch.equal(clip_limits(exact, inputs, grid), exact.reshape(5, 3, 4).abs().amax(dim=-1))
    assert torch.equal(clipped(exact, clip_limits(exact, inputs, grid)), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_clipped_weight_keeps_what_lies_between_its_limits(dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.5, 0.25, -8.0, 8.0]], dtype=dtype)
    found = clipped(weight, torch.tensor([[1.5, 4.0], [1.0, 6.0]]))
    assert found.dtype == dtype
    assert found.tolist() == [[1.0, -1.5, 3.0, -4.0], [0.5, 0.25, -6.0, 6.0]]


def test_limits_make_the_outputs_better() -> None:
    weight, inputs = layer(3, rows=32, inputs=64, tokens=200)
    grid = Grid(bits=3, scheme="asym", group=32)
    cut = clipped(weight, clip_limits(weight, inputs, grid))
    ours, plain = (float((inputs @ (fake_quantize(some, grid) - weight).T).square().mean()) for some in (cut, weight))
    assert ours < 0.9 * plain


def test_a_limit_is_a_number_that_the_weights_dtype_holds() -> None:
    weight, inputs = layer(4)
    found = clip_limits(weight.bfloat16(), inputs, Grid(bits=2, scheme="asym"))
    assert torch.equal(found, found.bfloat16().float())
    assert not torch.equal(found, weight.bfloat16().float().abs().amax(dim=1, keepdim=True))
