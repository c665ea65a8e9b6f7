"""The column loop in its two ways, against a loop over single weights and against each other."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from letheon.errors import MissingExtra
from letheon.quantization.kernels import columns
from letheon.quantization.kernels.columns import Block, RoundedBlock, kernel_for, round_block
from tests.toys import bits

KERNELS = ["torch", "numba"]
PARTS = ["gptq", "gptaq", "rescomp", "residual alone"]


def block(parts: str, *, rows: int = 9, width: int = 12, dtype: torch.dtype = torch.float64, seed: int = 0) -> Block:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    has_drift, has_residual = parts in ("gptaq", "rescomp"), parts in ("rescomp", "residual alone")
    return Block(
        values=draw(rows, width),
        step=draw(rows, width).abs() * 0.2 + 0.1,
        zero=(draw(rows, width) * 2).round() + 3,
        code_range=(0, 7),
        factor=(draw(width, width) * 0.3).triu(1) + torch.diag(draw(width).abs() + 0.5),
        drift=(draw(width, width) * 0.3).triu(1) if has_drift else None,
        residual=(draw(width, width) * 0.3).triu(1) if has_residual else None,
        original=draw(rows, width) if has_residual else None,
    )


def slowly(given: Block) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
    """Weight by weight, in Python's own numbers."""
    low, high = given.code_range
    codes, errors, befores = [], [], []
    for row in range(len(given.values)):
        values = given.values[row].tolist()
        codes.append([]), errors.append([])
        for i in range(len(values)):
            step, zero, value = float(given.step[row, i]), float(given.zero[row, i]), values[i]
            code = min(max(round(value / step) + zero, low), high)
            error = (value - (code - zero) * step) / float(given.factor[i, i])
            for k in range(i + 1, len(values)):
                values[k] -= error * float(given.factor[i, k])
                if given.drift is not None:
                    values[k] += value * float(given.drift[i, k])
                if given.residual is not None and given.original is not None:
                    values[k] += (float(given.original[row, i]) - value) * float(given.residual[i, k])
            codes[-1].append(int(code)), errors[-1].append(error)
        befores.append(values)
    return codes, errors, befores


def assert_equal(one: RoundedBlock, other: RoundedBlock) -> None:
    for part in ("codes", "errors", "before"):
        assert bits(getattr(one, part)) == bits(getattr(other, part))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("parts", PARTS)
def test_each_way_equals_a_loop_over_single_weights(kernel: Any, parts: str) -> None:
    for seed in range(3):
        given = block(parts, seed=seed)
        before = bits(given.values)
        found = round_block(given, kernel=kernel)
        codes, errors, values = slowly(given)
        assert found.codes.tolist() == codes and found.codes.dtype == torch.int16
        torch.testing.assert_close(found.errors, torch.tensor(errors, dtype=torch.float64))
        torch.testing.assert_close(found.before, torch.tensor(values, dtype=torch.float64))
        assert bits(given.values) == before


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_tie_goes_to_the_even_code_and_a_range_cuts(kernel: Any) -> None:
    given = block("gptq", rows=1, width=5, dtype=torch.float32)
    values = torch.tensor([[0.5, 1.5, -2.5, 9.0, -9.0]])
    apart = replace(given, values=values, step=torch.ones(1, 5), zero=torch.zeros(1, 5), factor=torch.eye(5))
    found = round_block(replace(apart, code_range=(-4, 3)), kernel=kernel)
    assert found.codes.tolist() == [[0, 2, -2, 3, -4]]
    assert found.errors.tolist() == [[0.5, -0.5, -0.5, 6.0, -5.0]]
    assert torch.equal(found.before, values)


@pytest.mark.parametrize("parts", PARTS)
def test_both_ways_agree_to_rounding_in_single_precision(parts: str) -> None:
    given = block(parts, rows=64, width=128, dtype=torch.float32)
    # As mild as the factor of real inputs, so that a rounded bit does not grow through 128 columns.
    given = replace(
        given,
        **{name: getattr(given, name) * 0.05 for name in ("drift", "residual") if getattr(given, name) is not None},
    )
    given = replace(given, factor=given.factor.triu(1) * 0.1 + torch.diag(given.factor.diagonal()))
    one, other = (round_block(given, kernel=kernel) for kernel in ("torch", "numba"))
    same = (one.codes == other.codes).all(dim=1)
    assert float(same.double().mean()) > 0.9
    torch.testing.assert_close(one.before[same], other.before[same], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.errors[same], other.errors[same], rtol=1e-3, atol=1e-4)
    assert one.errors.dtype == other.errors.dtype == torch.float32


@pytest.mark.parametrize("kernel", KERNELS)
def test_empty_coefficients_change_no_bit(kernel: Any) -> None:
    given = block("gptq", rows=16, width=32, dtype=torch.float32)
    nothing = torch.zeros(32, 32)
    found = round_block(replace(given, drift=nothing, residual=nothing, original=given.values + 1), kernel=kernel)
    assert_equal(found, round_block(given, kernel=kernel))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_threads_share_the_rows_and_change_no_bit(rows: int, threads: None) -> None:
    given = block("rescomp", rows=rows)
    torch.set_num_threads(1)
    alone = round_block(given, kernel="numba")
    torch.set_num_threads(3)
    assert_equal(round_block(given, kernel="numba"), alone)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    importing = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "numba":
            raise ModuleNotFoundError("No module named 'numba'")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    columns._compiled.cache_clear()
    yield
    columns._compiled.cache_clear()


def test_without_numba_the_other_way_runs_and_says_so(without_numba: None) -> None:
    given = block("rescomp")
    assert kernel_for("cpu") == "torch"
    assert_equal(round_block(given), round_block(given, kernel="torch"))
    with pytest.raises(MissingExtra, match=r"the compiled column loop needs .* pip install 'letheon\[quantize\]'"):
        round_block(given, kernel="numba")


def test_the_compiled_way_is_taken_on_the_processor_alone() -> None:
    assert kernel_for("cpu") == kernel_for(torch.device("cpu")) == "numba"
    assert kernel_for("mps") == "torch"
    given = block("gptaq")
    assert_equal(round_block(given), round_block(given, kernel="numba"))
