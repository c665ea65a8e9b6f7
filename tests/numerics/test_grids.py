"""Grids against a loop over single weights, an independent table, and what must hold for any rounding."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.numerics.grids import (
    CodebookGrid,
    Grid,
    Quantized,
    _check_same_shape,
    bin_centres_and_step,
    code_match,
    dequantize,
    fake_quantize,
    quantize,
    shift_in_steps,
)

SCHEMES = ["sym", "sym_clipped", "sym_centred", "asym"]
GROUPS = ["row", "tensor", 8]


def weights(rows: int = 12, columns: int = 32, *, seed: int = 0, scale: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * scale


def slow_uniform(
    values: list[float], scheme: str, bits: int, shrink: float = 1.0
) -> tuple[list[int], float, list[float]]:
    """One group by the book, weight by weight: codes, step, values. Written apart from the package."""
    # In float32: sym_centred's largest weight lies midway between two codes, and precision decides.
    exact = [np.float32(value) for value in values]
    low_value, high_value = min(*exact, np.float32(0)), max(*exact, np.float32(0))
    biggest = max(-low_value, high_value)
    half = 2 ** (bits - 1)
    if scheme == "sym":
        step, zero, low, high = biggest / np.float32(half - 1), 0, -half, half - 1
    elif scheme == "sym_clipped":
        step, zero, low, high = biggest / np.float32(half), 0, -half, half - 1
    elif scheme == "sym_centred":
        step, zero, low, high = np.float32(2) * biggest / np.float32(2 * half - 1), half, 0, 2 * half - 1
    else:
        step = (high_value - low_value) / np.float32(2 * half - 1)
        zero, low, high = round(-low_value / step), 0, 2 * half - 1
    step = step * np.float32(shrink)
    # Python, too, rounds half to even.
    codes = [min(max(round(value / step) + zero, low), high) for value in exact]
    return codes, float(step), [float(step * np.float32(code - zero)) for code in codes]


def slow_mse_shrink(values: list[float], scheme: str, bits: int) -> float:
    best, best_error = 1.0, math.inf
    for trial in range(80):
        rounded = slow_uniform(values, scheme, bits, 1 - trial / 100)[2]
        error = sum(abs(value - q) ** 2.4 for value, q in zip(values, rounded, strict=True))
        if error < best_error:
            best, best_error = 1 - trial / 100, error
    return best


def groups_of(weight: Tensor, group: int | str) -> list[list[float]]:
    if group == "tensor":
        return [weight.flatten().tolist()]
    size = weight.shape[1] if group == "row" else int(group)
    return weight.reshape(-1, size).tolist()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_scales_and_values_equal_a_loop_over_single_weights(scheme: str, bits: int, group: int | str) -> None:
    weight = weights()
    result = quantize(weight, Grid(bits=bits, scheme=scheme, group=group))
    expected = [slow_uniform(values, scheme, bits) for values in groups_of(weight, group)]
    assert result.codes.flatten().tolist() == [code for codes, _, _ in expected for code in codes]
    torch.testing.assert_close(result.scale.flatten(), torch.tensor([step for _, step, _ in expected]))
    torch.testing.assert_close(dequantize(result).flatten(), torch.tensor([q for _, _, qs in expected for q in qs]))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clip_search_keeps_the_first_best_of_eighty_ranges(scheme: str, bits: int) -> None:
    weight = weights(seed=1)
    result = quantize(weight, Grid(bits=bits, scheme=scheme, group=16, clip="mse"))
    whole = quantize(weight, Grid(bits=bits, scheme=scheme, group=16))
    shrinks = [slow_mse_shrink(values, scheme, bits) for values in groups_of(weight, 16)]
    assert len(set(shrinks)) > 3  # the search really chooses
    torch.testing.assert_close(result.scale.flatten(), whole.scale.flatten() * torch.tensor(shrinks))
    assert torch.equal(result.zero, whole.zero)


def test_clip_search_keeps_the_widest_of_equally_good_ranges() -> None:
    zeros = torch.zeros(2, 8)
    for scheme in SCHEMES:
        searched = quantize(zeros, Grid(scheme=scheme, clip="mse"))  # type: ignore[arg-type]
        assert torch.equal(searched.scale, quantize(zeros, Grid(scheme=scheme)).scale)  # type: ignore[arg-type]


def test_clip_search_in_pieces_equals_the_search_of_each_row_alone() -> None:
    weight = weights(40, 4096, seed=2)  # more than two pieces
    grid = Grid(bits=3, clip="mse")
    assert torch.equal(fake_quantize(weight, grid), torch.cat([fake_quantize(row[None], grid) for row in weight]))


@pytest.mark.parametrize(
    "grid", [Grid(bits=4), Grid(bits=3, group=8), Grid(bits=8, scheme="asym"), Grid(bits=2, group="tensor")]
)
def test_error_is_at_most_half_a_step_inside_the_range(grid: Grid) -> None:
    weight = weights(seed=3)
    centres, step = bin_centres_and_step(weight, grid)
    error = (fake_quantize(weight, grid) - weight).abs()
    # asym: the two ends of the range may lose up to half a step more, because the zero point is rounded too.
    limit = step if grid.scheme == "asym" else step / 2
    assert bool((error <= limit * (1 + 1e-4)).all())
    assert float((error / step).max()) > 0.45  # the bound is nearly reached, so a finer grid would fail here
    assert torch.equal(centres, fake_quantize(weight, grid))


@pytest.mark.parametrize("scheme", ["sym_clipped", "sym_centred"])
def test_only_the_top_of_a_cut_range_errs_more_than_half_a_step(scheme: str) -> None:
    weight = weights(seed=4)
    weight[:, 0] = weight.abs().amax(dim=1) * 1.5
    grid = Grid(bits=4, scheme=scheme)
    _, step = bin_centres_and_step(weight, grid)
    error = (fake_quantize(weight, grid) - weight).abs() / step
    cut = 1.0 if scheme == "sym_clipped" else 0.5
    torch.testing.assert_close(error[:, 0], torch.full((12,), cut), rtol=0, atol=1e-4)
    assert bool((error[:, 1:] <= 0.5 + 1e-4).all())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", GROUPS)
def test_restricted_range_is_idempotent(bits: int, group: int | str) -> None:
    grid = Grid(bits=bits, group=group)
    once = fake_quantize(weights(seed=5), grid)
    torch.testing.assert_close(fake_quantize(once, grid), once, rtol=2e-7, atol=0)
    assert torch.equal(quantize(once, grid).codes, quantize(weights(seed=5), grid).codes)


def test_clipped_range_is_not_idempotent_when_the_largest_weight_is_positive() -> None:
    weight = torch.tensor([[8.0, 0.9, -3.2]])
    grid = Grid(bits=4, scheme="sym_clipped")
    once = fake_quantize(weight, grid)
    assert once.tolist() == [[7.0, 1.0, -3.0]]
    assert not torch.equal(fake_quantize(once, grid), once)


@pytest.mark.parametrize("factor", [0.125, 64.0, 3.7])
@pytest.mark.parametrize("grid", [Grid(bits=4, scheme=s, clip=c) for s in SCHEMES for c in ("absmax", "mse")])  # type: ignore[arg-type]
def test_scaling_the_weights_scales_the_result(grid: Grid, factor: float) -> None:
    weight = weights(seed=6)
    expected, found = fake_quantize(weight, grid) * factor, fake_quantize(weight * factor, grid)
    if grid.scheme == "sym_centred":
        # Its largest weight lies midway between two codes (M / s = 7.5 at 4 bits): the last bit decides.
        ends = weight.abs() == weight.abs().amax(dim=1, keepdim=True)
        expected, found = expected[~ends], found[~ends]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("grid_scheme", SCHEMES)
def test_zero_stays_zero(grid_scheme: str, group: int | str) -> None:
    weight = weights(seed=7) + 0.03  # mostly positive, so that an asymmetric range would like to leave zero out
    weight[weight < 0.02] = 0.0
    weight[3] = 0.0
    for clip in ("absmax", "mse"):
        rounded = fake_quantize(weight, Grid(bits=3, scheme=grid_scheme, group=group, clip=clip))  # type: ignore[arg-type]
        assert bool((rounded[weight == 0] == 0).all())
        assert torch.isfinite(rounded).all()
    assert bool((fake_quantize(torch.zeros(2, 8), Grid(scheme=grid_scheme)) == 0).all())  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1, -1])
def test_asymmetric_range_contains_zero_and_gives_one_sided_weights_all_levels(sign: int) -> None:
    weight = sign * torch.linspace(5.0, 6.0, 64)[None]
    result = quantize(weight, Grid(bits=4, scheme="asym"))
    assert int(result.zero) == (0 if sign > 0 else 15)
    torch.testing.assert_close(result.scale, torch.tensor([[6.0 / 15]]))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_fill_the_range_a_packer_can_store(scheme: str, bits: int) -> None:
    grid = Grid(bits=bits, scheme=scheme)  # type: ignore[arg-type]
    low, high = grid.code_range
    assert high - low + 1 == 2**bits
    # Lopsided for asym, whose zero point would otherwise be a tie between two codes.
    codes = quantize(torch.linspace(-1 / 3 if scheme == "asym" else -1, 1, 4001)[None], grid).codes
    # Without a clip search sym never takes its lowest code, and sym_centred only when -M / s ties that way.
    lowest = {"sym": (low + 1,), "sym_centred": (low, low + 1)}.get(scheme, (low,))
    assert int(codes.max()) == high
    assert int(codes.min()) in lowest
    assert codes.unique().tolist() == list(range(int(codes.min()), high + 1))


def test_the_lowest_code_of_the_restricted_range_is_used_once_the_range_is_cut() -> None:
    weight = torch.cat([torch.full((1, 1), -1.3), torch.linspace(-1, 1, 2001)[None]], dim=1)
    assert int(quantize(weight, Grid(bits=2, clip="mse")).codes.min()) == -2


def test_half_goes_to_the_even_code() -> None:
    weight = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert quantize(weight, Grid(bits=4)).codes.tolist() == [[7, 0, 2, 2, 0, -2]]


def test_eight_bits_step_is_a_sixteenth_of_four_bits_with_the_papers_step() -> None:
    weight = weights(seed=8)
    four = quantize(weight, Grid(bits=4, scheme="sym_clipped")).scale
    assert torch.equal(quantize(weight, Grid(bits=8, scheme="sym_clipped")).scale * 16, four)


def test_groups_and_rows_do_not_influence_each_other() -> None:
    weight = weights(seed=9)
    grid = Grid(bits=3, group=8, clip="mse")
    rounded = fake_quantize(weight, grid)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fake_quantize(weight[order], grid), rounded[order])
    changed = weight.clone()
    changed[2, 8:16] *= 100
    same = torch.ones_like(weight, dtype=torch.bool)
    same[2, 8:16] = False
    assert torch.equal(fake_quantize(changed, grid)[same], rounded[same])
    assert torch.equal(fake_quantize(weight[:, 8:16].contiguous(), Grid(bits=3, clip="mse")), rounded[:, 8:16])


def test_sixteen_bits_leave_the_weights_as_they_are() -> None:
    weight = weights().bfloat16()
    rounded = fake_quantize(weight, Grid(bits=16))
    assert torch.equal(rounded, weight) and rounded.dtype == torch.bfloat16
    # Copies, so that neither side can be reached through the other.
    result = quantize(weight, Grid(bits=16))
    dequantize(result).zero_()
    assert torch.equal(result.codes, weight)
    result.codes.zero_()
    assert float(weight.abs().sum()) > 0
    assert code_match(weight, weight, Grid(bits=16)) == 1.0
    assert shift_in_steps(weight, weight, Grid(bits=16)) is None


@pytest.mark.parametrize("grid", [Grid(bits=4), Grid(bits=4, scheme="asym", clip="mse"), CodebookGrid("nf4")])
def test_arithmetic_is_float32_and_the_dtype_comes_back(grid: Grid | CodebookGrid) -> None:
    weight = weights(seed=10).bfloat16()
    rounded = fake_quantize(weight, grid)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, fake_quantize(weight.float(), grid).bfloat16())


def test_no_gradient_flows_and_a_transposed_weight_is_read_right() -> None:
    weight = weights(16, 16).requires_grad_()
    assert not fake_quantize(weight, Grid(bits=4, group=8)).requires_grad
    turned = weight.detach().t()
    assert torch.equal(
        fake_quantize(turned, Grid(bits=4, group=8)),
        fake_quantize(turned.contiguous(), Grid(bits=4, group=8)),
    )


# Codebooks. FP4 is rebuilt from its bits (sign, exponent, fraction; bias 3), NF4 is written out again.


def fp4_of_bits(code: int) -> float:
    sign = -1.0 if code & 8 else 1.0
    exponent, fraction = (code >> 1) & 3, code & 1
    if exponent == 0:
        return sign * 0.0625 * fraction / 12
    return sign * 2.0 ** (4 - exponent) * (1.5 if fraction else 1.0) / 12


NF4_AGAIN = [
    -1.0, -0.69619280, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.07958030, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0,
]  # fmt: skip
TABLES_AGAIN = {"fp4": [fp4_of_bits(code) for code in range(16)], "nf4": NF4_AGAIN}


@pytest.mark.parametrize("name", ["fp4", "nf4"])
@pytest.mark.parametrize("block", [64, 7])
def test_codebook_takes_the_nearest_of_sixteen_values(name: str, block: int) -> None:
    weight = weights(9, 50, seed=11)  # 450 weights: the last block is short, and blocks run over row ends
    grid = CodebookGrid(name, block)  # type: ignore[arg-type]
    rounded, codes = (
        fake_quantize(weight, grid).flatten().tolist(),
        quantize(weight, grid).codes.flatten().tolist(),
    )
    flat = weight.flatten().tolist()
    for start in range(0, len(flat), block):
        absmax = max(abs(value) for value in flat[start : start + block])
        for position in range(start, min(start + block, len(flat))):
            nearest = min(
                (level * absmax for level in TABLES_AGAIN[name]),
                key=lambda level: abs(level - flat[position]),
            )
            assert rounded[position] == pytest.approx(nearest, rel=1e-6, abs=1e-9)
            assert TABLES_AGAIN[name][codes[position]] * absmax == pytest.approx(nearest, rel=1e-6, abs=1e-9)


def test_fp4_thresholds_and_dead_zone_are_the_kernels() -> None:
    just = 1e-5
    pivots = {
        0.00260417: (0, 1), 0.0859375: (1, 6), 0.20833333: (6, 7), 0.29166667: (7, 4),
        0.4166667: (4, 5), 0.583333: (5, 2), 0.8333333: (2, 3),
    }  # fmt: skip
    for pivot, (below, above) in pivots.items():
        weight = torch.tensor([[1.0, pivot - just, pivot + just, -pivot + just, -pivot - just]])
        minus_below = below + 8 if below else 0
        assert quantize(weight, CodebookGrid("fp4")).codes.tolist() == [[3, below, above, minus_below, above + 8]]


def test_codebook_ties_and_zero_blocks() -> None:
    # 11/128 is the middle of 1/192 and 1/6, and a float32: the smaller magnitude wins on both sides.
    codes = quantize(torch.tensor([[1.0, 11 / 128, -11 / 128, 0.0]]), CodebookGrid("fp4")).codes
    assert codes.tolist() == [[3, 1, 9, 0]]
    # The middles of NF4's outer values as float32; the lower value wins.
    middles = [(-1.0 - 0.6961928009986877) / 2, (1.0 + 0.7229568362236023) / 2]
    assert quantize(torch.tensor([[1.0, *middles]]), CodebookGrid("nf4")).codes.tolist() == [[15, 0, 14]]
    for name in ("fp4", "nf4"):
        result = quantize(torch.zeros(2, 64), CodebookGrid(name))  # type: ignore[arg-type]
        assert bool((dequantize(result) == 0).all())
        assert int(result.zero[0]) == int(result.codes[0, 0])


def test_codebook_scales_exactly_with_powers_of_two() -> None:
    weight = weights(seed=12)
    for name in ("fp4", "nf4"):
        grid = CodebookGrid(name)  # type: ignore[arg-type]
        assert torch.equal(fake_quantize(weight * 4, grid), fake_quantize(weight, grid) * 4)


# What the audit asks of a grid.


@pytest.mark.parametrize(
    "grid",
    [Grid(bits=4), Grid(bits=4, group=8), Grid(bits=3, scheme="asym"), Grid(bits=4, scheme="sym_centred")],
)
def test_weights_moved_inside_their_bins_give_the_same_quantized_weights(grid: Grid) -> None:
    before = weights(seed=13)
    centres, step = bin_centres_and_step(before, grid)
    noise = (torch.rand(before.shape, generator=torch.Generator().manual_seed(1)) - 0.5) * 0.98 * step
    after = centres + noise
    size = grid.group if isinstance(grid.group, int) else 32
    grouped = before.reshape(-1, size)
    pinned = ((grouped == grouped.amax(1, keepdim=True)) | (grouped == grouped.amin(1, keepdim=True))).reshape(
        before.shape
    )
    after = torch.where(pinned, before, after)
    # Nothing else may have outgrown the pinned ends.
    low, high = (end.reshape(-1, 1) for end in grouped.aminmax(dim=1))
    after = after.reshape(-1, size).clamp(low, high).reshape(before.shape)
    assert code_match(before, after, grid) == 1.0
    assert torch.equal(fake_quantize(before, grid), fake_quantize(after, grid))
    moved = shift_in_steps(before, after, grid)
    assert moved is not None and moved > 0.2
    outside = before + 0.3 * step
    assert code_match(before, outside, grid) < 0.95


def test_code_match_uses_each_sides_own_scale_and_shift_the_scale_of_before() -> None:
    before = weights(seed=14)
    grid = Grid(bits=4)
    assert code_match(before, before * 2, grid) == 1.0
    step = before.abs().amax(dim=1) / 7
    expected = float((before.abs().mean(dim=1) / step).mean())
    assert shift_in_steps(before, before * 2, grid) == pytest.approx(expected, rel=1e-5)
    assert shift_in_steps(before * 2, before, grid) == pytest.approx(expected / 2, rel=1e-5)


def test_code_match_counts_weights() -> None:
    before = torch.tensor([[7.0, 1.0, 2.0, 3.0]])
    assert code_match(before, torch.tensor([[7.0, 1.4, 2.6, 3.0]]), Grid(bits=4)) == 0.75
    assert shift_in_steps(before, torch.tensor([[7.0, 1.4, 2.6, 3.0]]), Grid(bits=4)) == pytest.approx(0.25)


def test_codebooks_have_no_step() -> None:
    weight = weights()
    assert shift_in_steps(weight, weight, CodebookGrid("nf4")) is None
    assert code_match(weight, weight, CodebookGrid("fp4")) == 1.0


# Refusals.


def unchecked(cls: type[Grid] | type[CodebookGrid], **settings: object) -> None:
    """Make a grid as a user without run-time type checks makes it: tests would stop at a Literal."""
    grid = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(grid, field.name, settings.get(field.name, field.default))
    grid.__post_init__()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 1}, "a grid of 1 bits does not exist. Use 2 to 8, or 16"),
        ({"bits": 12}, "a grid of 12 bits"),
        ({"scheme": "centred"}, "'centred' is not known. Use one of sym, sym_clipped"),
        ({"group": 0}, "group 0 is not usable"),
        ({"group": "column"}, "group 'column' is not usable. Use 'row', 'tensor'"),
        ({"clip": "best"}, "clip 'best' is not known. Use 'absmax' or 'mse'"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        unchecked(Grid, **settings)


def test_codebooks_that_do_not_exist_are_refused() -> None:
    with pytest.raises(BadInput, match=r"codebook 'int4' is not known. Use 'fp4' or 'nf4'"):
        unchecked(CodebookGrid, name="int4", block=64)
    with pytest.raises(BadInput, match="block of 0 weights"):
        CodebookGrid("nf4", 0)


def test_a_group_that_does_not_divide_names_both_numbers() -> None:
    with pytest.raises(
        BadInput,
        match=r"group of 24 does not divide the 32 inputs of a weight of shape \(12, 32\). Use a divisor",
    ):
        quantize(weights(), Grid(group=24))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("grid", [Grid(), Grid(bits=16), Grid(group="tensor", clip="mse"), CodebookGrid("fp4")])
def test_damaged_weights_are_refused_and_located(value: float, grid: Grid | CodebookGrid) -> None:
    weight = weights()
    weight[5, 1] = value
    with pytest.raises(BadInput, match=r"first in row 5.*earlier checkpoint"):
        fake_quantize(weight, grid)


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(BadInput, match="meta device"):
        quantize(torch.empty(2, 8, device="meta"), Grid())
    with pytest.raises(BadInput, match=r"shape \(0, 8\) has no grid"):
        quantize(torch.empty(0, 8), Grid())
    with pytest.raises(BadInput, match="no step of its own"):
        bin_centres_and_step(weights(), Grid(bits=16))
    with pytest.raises(BadInput, match="16 bits is off and has no codes"):
        _ = Grid(bits=16).code_range
    with pytest.raises(BadInput, match=r"shapes \(12, 32\) and \(12, 16\) cannot be compared"):
        _check_same_shape(weights(), weights(12, 16))


def test_shapes_of_what_a_packer_gets() -> None:
    weight = weights()
    shapes = {"row": (12, 1), "tensor": (1, 1), 8: (12, 4)}
    for group, shape in shapes.items():
        result = quantize(weight, Grid(bits=4, scheme="asym", group=group))  # type: ignore[arg-type]
        assert isinstance(result, Quantized)
        assert result.codes.dtype == result.zero.dtype == torch.int16 and result.scale.dtype == torch.float32
        assert result.codes.shape == weight.shape and result.scale.shape == result.zero.shape == shape
    assert quantize(weight, CodebookGrid("nf4")).scale.shape == (6, 1)
