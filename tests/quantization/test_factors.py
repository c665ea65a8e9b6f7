"""Factors against inverses solved one by one, least squares on the tokens, and moments that have no inverse."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput, CannotFinish
from letheon.quantization.factors import DampingRaised, NotPositiveDefinite, dead_inputs, factorize, passed_on, refitted
from tests.quantization.slow_solvers import Layer, made_up, order_of


def damped(layer: Layer, order: list[int], damping: float) -> Tensor:
    gram = layer.statistics.gram[order][:, order]
    return gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


@pytest.mark.parametrize(("is_sorted", "act_order"), [(True, "static"), (False, "none")])
@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
def test_the_factor_is_that_of_the_inverse_in_the_order_of_work(
    is_sorted: bool, act_order: str, damping: float
) -> None:
    layer = made_up(1)
    found = factorize(layer.statistics.gram, damping=damping, is_sorted=is_sorted)
    order = order_of(layer, act_order)
    assert found.order.tolist() == order and found.damping == damping and not bool(found.dead.any())
    inverse = torch.linalg.inv(damped(layer, order, damping))
    torch.testing.assert_close(found.upper.T @ found.upper, inverse, rtol=1e-8, atol=1e-8)
    assert torch.equal(found.upper, found.upper.triu()) and bool((found.upper.diagonal() > 0).all())
    # What makes one factor serve all steps: its lower right corners are the factors of the smaller inverses.
    for column in (1, 11, 23):
        corner = found.upper[column:, column:]
        smaller = torch.linalg.inv(damped(layer, order, damping)[column:, column:])
        torch.testing.assert_close(corner.T @ corner, smaller, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("is_sorted", "act_order"), [(True, "static"), (False, "none")])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_what_a_column_passes_on_is_its_moments_times_the_inverse_of_the_rest(
    is_sorted: bool, act_order: str, alpha: float
) -> None:
    layer = made_up(2)
    known = layer.statistics
    assert known.drift is not None
    order = order_of(layer, act_order)
    inverse = factorize(known.gram, damping=0.01, is_sorted=is_sorted)
    gram = damped(layer, order, 0.01)
    for moments in (known.drift, known.drift + known.gram):
        found = passed_on(moments, inverse, alpha)
        assert found is not None
        expected = torch.zeros(24, 24, dtype=torch.float64)
        for column in range(23):
            rest = slice(column + 1, None)
            own = moments[order][:, order][column, rest]
            expected[column, rest] = alpha * torch.linalg.solve(gram[rest, rest], own)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_nothing_is_passed_on_without_mismatch_or_share() -> None:
    layer = made_up(3)
    inverse = factorize(layer.statistics.gram, damping=0.01, is_sorted=True)
    assert passed_on(None, inverse, 0.25) is None and passed_on(layer.statistics.drift, inverse, 0.0) is None
    assert torch.equal(refitted(layer.weight, None, inverse, 1.0), layer.weight)
    assert torch.equal(refitted(layer.weight, layer.statistics.drift, inverse, 0.0), layer.weight)


@pytest.mark.parametrize("is_sorted", [True, False])
def test_refitted_weights_are_the_least_squares_answer(is_sorted: bool) -> None:
    layer = made_up(4)
    inverse = factorize(layer.statistics.gram, damping=0.0, is_sorted=is_sorted)
    best = torch.linalg.lstsq(layer.found, layer.original @ layer.weight.T).solution.T
    found = refitted(layer.weight, layer.statistics.drift, inverse, 1.0)
    torch.testing.assert_close(found, best, rtol=1e-8, atol=1e-8)
    half = refitted(layer.weight, layer.statistics.drift, inverse, 0.5)
    torch.testing.assert_close(half, (found + layer.weight) / 2, rtol=1e-8, atol=1e-8)
    assert refitted(layer.weight.bfloat16(), layer.statistics.drift, inverse, 0.5).dtype == torch.float32


def test_dead_inputs_come_last_and_count_with_the_mean_of_the_live_ones() -> None:
    """So that the unit in which inputs are measured does not decide how much is added to the others."""
    layer = made_up(5)
    gram = layer.statistics.gram.clone()
    gram[[2, 9]], gram[:, [2, 9]] = 0, 0
    assert dead_inputs(gram).nonzero().flatten().tolist() == [2, 9]
    found = factorize(gram, damping=0.1, is_sorted=True)
    assert found.order[-2:].tolist() == [2, 9]
    live = [one for one in range(24) if one not in (2, 9)]
    expected = factorize(gram[live][:, live], damping=0.1, is_sorted=True)
    assert [live[one] for one in expected.order.tolist()] == found.order[:-2].tolist()
    torch.testing.assert_close(found.upper[:22, :22], expected.upper)
    assert not bool(found.upper[:22, 22:].any())
    scaled = factorize(gram * 1e-6, damping=0.1, is_sorted=True)
    torch.testing.assert_close(scaled.upper * 1e-3, found.upper)


def test_equal_inputs_keep_their_order() -> None:
    assert factorize(torch.eye(100), damping=0.01, is_sorted=True).order.tolist() == list(range(100))


def with_eigenvalue(lowest: float) -> Tensor:
    """Moments with 23 eigenvalues of 1, and one that sums of rounded numbers may have left."""
    basis = torch.linalg.qr(made_up(6).found[:24]).Q
    values = torch.ones(24, dtype=torch.float64)
    values[3] = lowest
    return basis @ values.diag() @ basis.T


@pytest.mark.parametrize(
    ("lowest", "asked", "used"),
    [
        (0.0, 0.0, 0.001),
        (-0.003, 0.0, 0.01),
        (-0.003, 0.002, 0.02),
        (-0.05, 0.01, 0.1),
        (-0.5, 0.01, 1),
        (-0.5, 0.3, 1),
    ],
)
def test_damping_is_raised_tenfold_until_it_is_enough(lowest: float, asked: float, used: float) -> None:
    gram = with_eigenvalue(lowest)
    with pytest.warns(DampingRaised, match=rf"a damping of {asked:g} was not enough: {used:g} was used"):
        found = factorize(gram, damping=asked, is_sorted=True)
    assert found.damping == used
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(factorize(gram, damping=used, is_sorted=True).upper, found.upper)


def test_an_inverse_that_enlarges_the_rounding_of_the_sums_is_not_used() -> None:
    """Moments can be inverted in float64 that are noise in float32, in which they were summed."""
    with pytest.warns(DampingRaised):
        assert factorize(with_eigenvalue(1e-9), damping=0.0, is_sorted=True).damping == 0.001
    # The unit of an input is no such thing: one of a millionth of the others' size is as good as they.
    unit = torch.ones(24, dtype=torch.float64).index_fill(0, torch.tensor([5]), 1e-6)
    for lowest in (1e-5, 1.0):
        gram = with_eigenvalue(lowest) * unit * unit[:, None]
        assert factorize(gram, damping=0.0, is_sorted=True).damping == 0.0


def test_moments_without_a_usable_inverse_are_refused() -> None:
    with pytest.raises(NotPositiveDefinite, match="no usable inverse, even with a damping of 1") as refused:
        factorize(with_eigenvalue(-2), damping=0.01, is_sorted=True)
    assert isinstance(refused.value, CannotFinish)
    for value in (torch.nan, torch.inf):
        with pytest.raises(BadInput, match="NaN or infinite moments"):
            factorize(torch.eye(4).index_fill(0, torch.tensor([2]), value), damping=0.01, is_sorted=True)
    with pytest.raises(BadInput, match="inputs are all zero"):
        factorize(torch.zeros(4, 4), damping=0.01, is_sorted=True)


def test_a_drift_of_other_inputs_or_of_no_numbers_is_refused() -> None:
    inverse = factorize(torch.eye(24), damping=0.01, is_sorted=True)
    with pytest.raises(BadInput, match=r"a drift of shape \(12, 12\) does not fit 24 inputs"):
        passed_on(torch.zeros(12, 12), inverse, 0.25)
    with pytest.raises(BadInput, match="drifted to NaN or infinite"):
        refitted(torch.zeros(3, 24), torch.full((24, 24), torch.nan), inverse, 0.25)
