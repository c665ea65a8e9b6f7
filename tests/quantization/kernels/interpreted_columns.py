"""The column loop in Triton against the one in torch. Run by `test_triton.py`, in a process of its own.

TRITON_INTERPRET=1 python -m pytest tests/quantization/kernels/interpreted_columns.py; on a GPU without the variable.
"""

from __future__ import annotations

import os
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from letheon.numerics.grids import Grid
from letheon.quantization.compensation import round_compensated
from letheon.quantization.factors import factorize
from letheon.quantization.kernels.columns import Block, Kernel, RoundedBlock, round_block
from tests.quantization.kernels.test_columns import PARTS, block, slowly

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def moved(given: Block) -> Block:
    tensors = {field.name: getattr(given, field.name) for field in fields(given) if field.name != "code_range"}
    return replace(given, **{name: None if one is None else one.to(DEVICE) for name, one in tensors.items()})


def mild(given: Block) -> Block:
    """As mild as the factor of real inputs, so that a rounded bit does not grow through 128 columns."""
    parts = {name: getattr(given, name) for name in ("drift", "residual") if getattr(given, name) is not None}
    factor = given.factor.triu(1) * 0.1 + torch.diag(given.factor.diagonal())
    return replace(given, factor=factor, **{name: matrix * 0.05 for name, matrix in parts.items()})


def in_triton(given: Block) -> RoundedBlock:
    found = round_block(moved(given), kernel="triton")
    return RoundedBlock(codes=found.codes.cpu(), errors=found.errors.cpu(), before=found.before.cpu())


@pytest.mark.parametrize("parts", PARTS)
def test_it_equals_a_loop_over_single_weights(parts: str) -> None:
    given = block(parts, rows=9, width=12)
    found = in_triton(given)
    codes, errors, values = slowly(given)
    assert found.codes.tolist() == codes and found.codes.dtype == torch.int16
    torch.testing.assert_close(found.errors, torch.tensor(errors, dtype=torch.float64))
    torch.testing.assert_close(found.before, torch.tensor(values, dtype=torch.float64))


# Tiles hold 16 rows of 128 columns and 32 of 64: more rows than one, fewer, and rests.
@pytest.mark.parametrize(
    ("parts", "rows", "width"),
    [(parts, 34, 33) for parts in PARTS] + [("rescomp", 1, 1), ("rescomp", 3, 128), ("gptq", 19, 100)],
)
def test_it_equals_torch_in_single_precision(parts: str, rows: int, width: int) -> None:
    given = mild(block(parts, rows=rows, width=width, dtype=torch.float32))
    one, other = in_triton(given), round_block(given, kernel="torch")
    assert torch.equal(one.codes, other.codes)
    torch.testing.assert_close(one.before, other.before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.errors, other.errors, rtol=1e-5, atol=1e-5)


def test_a_tie_goes_to_the_even_code_and_a_range_cuts() -> None:
    given = block("gptq", rows=1, width=9, dtype=torch.float32)
    values = torch.tensor([[0.5, 1.5, -2.5, 9.0, -9.0, 1e9, -1e30, 0.49999997, -0.49999997]])
    apart = replace(given, values=values, step=torch.ones(1, 9), zero=torch.zeros(1, 9), factor=torch.eye(9))
    found = in_triton(replace(apart, code_range=(-4, 3)))
    assert found.codes.tolist() == [[0, 2, -2, 3, -4, 3, -4, 0, 0]]
    assert found.errors.tolist()[0][:5] == [0.5, -0.5, -0.5, 6.0, -5.0]
    assert torch.equal(found.before, values)


def test_views_of_a_larger_matrix_are_read_as_they_lie() -> None:
    given = block("rescomp", rows=5, width=6)
    wide = {
        name: torch.cat([getattr(given, name)] * 2, dim=1)[:, :6] for name in ("values", "step", "zero", "original")
    }
    turned = {name: getattr(given, name).T.contiguous().T for name in ("factor", "drift", "residual")}
    found = in_triton(replace(given, **wide, **turned))
    assert found.codes.tolist() == slowly(given)[0]
    assert torch.equal(found.before, in_triton(given).before)


@pytest.mark.parametrize("act_order", ["none", "static", "dynamic"])
def test_a_whole_layer_is_solved_alike(act_order: Any) -> None:
    kernels: list[Kernel] = ["triton", "torch"]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 48, generator=generator, dtype=torch.float64)
    inputs = torch.randn(200, 48, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 48)
    drift = torch.randn(48, 48, generator=generator, dtype=torch.float64).triu(1) * 0.02
    inverse = factorize((inputs.T @ inputs).to(DEVICE), damping=0.01, is_sorted=act_order != "none")
    grid = Grid(bits=3, scheme="asym", group=16)
    one, other = (
        round_compensated(
            weight.to(DEVICE), grid, inverse, act_order=act_order, block=20, drift=drift.to(DEVICE), kernel=kernel
        )
        for kernel in kernels
    )
    assert torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale)


def test_nothing_is_written_beside_what_it_fills() -> None:
    from letheon.quantization.kernels.columns_triton import round_into

    given, size = moved(block("gptq", rows=5, width=7)), 5 * 7
    wide = [torch.full((size + 64,), 77, dtype=kind, device=DEVICE) for kind in (torch.int16, *[torch.float64] * 2)]
    codes, errors, before = (one[:size].view(5, 7) for one in wide)
    round_into(given, codes=codes, errors=errors, before=before)
    assert all(bool((one[size:] == 77).all()) for one in wide)
    assert codes.tolist() == round_block(given, kernel="torch").codes.tolist()
