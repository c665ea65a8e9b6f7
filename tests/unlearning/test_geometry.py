"""Lengths, angle and slopes of two gradients against one long vector, and what must not be dropped in silence."""

from __future__ import annotations

import math

import pytest
import torch

from letheon.errors import CannotFinish
from letheon.unlearning.geometry import FLOOR, check_separable, describe_step, describe_sum, dot, measure, weighted_sum
from tests.unlearning.balances.pairs import long, random_pair, split


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_lengths_and_products_are_those_of_one_long_vector(dtype: torch.dtype, tolerance: float) -> None:
    forget, retain = random_pair(0, dtype=dtype)
    pair, one, other = measure(forget, retain), long(forget), long(retain)
    assert {pair.forget_norm.dtype, pair.retain_norm.dtype, pair.product.dtype} == {dtype}
    assert float(pair.forget_norm) == pytest.approx(float(one.norm()), rel=tolerance)
    assert float(pair.retain_norm) == pytest.approx(float(other.norm()), rel=tolerance)
    assert float(pair.product) == pytest.approx(float(one @ other), rel=tolerance, abs=tolerance)


def test_half_precision_is_summed_in_float32() -> None:
    ones = [torch.ones(5000, dtype=torch.bfloat16)]
    assert float(dot(ones, ones)) == 5000.0 and float(measure(ones, ones).forget_norm) == pytest.approx(5000**0.5)


def test_a_transposed_gradient_counts_entry_by_entry() -> None:
    forget, retain = torch.arange(6.0).reshape(2, 3).T, torch.ones(3, 2)
    assert float(dot([forget], [retain])) == 15.0


def test_a_weighted_sum_is_new_and_keeps_dtype_and_shape() -> None:
    forget, retain = random_pair(1, dtype=torch.float32)
    made = weighted_sum(forget, torch.tensor(2.0, dtype=torch.float64), retain, torch.tensor(-0.5))
    for tensor, one, other in zip(made, forget, retain, strict=True):
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, 2 * one - 0.5 * other)


def test_the_log_says_what_a_step_does_to_both_losses() -> None:
    forget, retain = [torch.tensor([3.0, 0.0])], [torch.tensor([0.0]), torch.tensor([4.0])]
    forget = [torch.tensor([3.0]), torch.tensor([0.0])]
    found = describe_step(forget, retain, [torch.tensor([1.0]), torch.tensor([-2.0])])
    assert found == {
        "forget_gradient_norm": 3.0, "retain_gradient_norm": 4.0, "gradient_cosine": 0.0,
        "forget_slope": 3.0, "retain_slope": -8.0,
    }  # fmt: skip


def test_what_is_too_short_is_named_and_has_no_angle() -> None:
    _, retain = random_pair(2)
    short = split(torch.full((26,), 1e-14, dtype=torch.float64))
    found = describe_step(short, retain, retain)
    assert found["forget_dropped"] == 1.0 and "retain_dropped" not in found and "gradient_cosine" not in found
    assert 0 < found["forget_gradient_norm"] < FLOOR
    assert describe_step(retain, short, retain)["retain_dropped"] == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_gradient_is_not_taken_for_a_short_one(value: float) -> None:
    forget, retain = random_pair(3)
    forget[2][0, 1, 0] = value
    pair = measure(forget, retain)
    assert bool(pair.has_forget) and bool(pair.has_retain)
    assert set(describe_step(forget, retain, retain)) == {"forget_gradient_norm", "retain_gradient_norm"}


def test_opposites_are_refused_and_everything_else_is_not() -> None:
    words = r"forget and retain gradients are opposite \(cosine -1\.000000\); nothing can be separated\. See whether"
    with pytest.raises(CannotFinish, match=words):
        check_separable({"gradient_cosine": -1.0})
    for figures in ({"gradient_cosine": -0.999}, {"gradient_cosine": 1.0}, {"forget_dropped": 1.0}):
        check_separable(figures)


def test_a_weighted_sum_is_described_without_looking_at_it() -> None:
    generator = torch.Generator().manual_seed(3)
    forget, retain = ([torch.randn(shape, generator=generator) for shape in ((4, 3), (5,))] for _ in range(2))
    weights = (torch.tensor(0.7), torch.tensor(-1.3))
    step = weighted_sum(forget, weights[0], retain, weights[1])
    assert describe_sum(measure(forget, retain), weights) == pytest.approx(
        describe_step(forget, retain, step), rel=1e-5
    )
    broken = [tensor * float("inf") for tensor in forget]
    assert set(describe_sum(measure(broken, retain), weights)) == {"forget_gradient_norm", "retain_gradient_norm"}
