"""Moments against float64 sums over all tokens at once, whatever the pieces they come in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.quantization.statistics import Moments


def tokens(count: int, seed: int) -> Tensor:
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-1, 1, 7)


@pytest.mark.parametrize("pieces", [[50], [1, 49], [20, 0, 13, 17]])
def test_they_are_the_means_over_all_tokens_whatever_the_pieces(pieces: list[int]) -> None:
    found, original = tokens(50, 0), tokens(50, 1)
    moments = Moments(7, has_drift=True)
    for some, others in zip(found.split(pieces), original.split(pieces), strict=True):
        moments.add(some, others)
    known = moments.statistics()
    x, o = found.double(), original.double()
    torch.testing.assert_close(known.gram.double(), x.T @ x / 50, rtol=1e-5, atol=1e-5)
    assert known.drift is not None
    # Row: the drifted input. Column: the input it is seen with.
    torch.testing.assert_close(known.drift.double(), (o - x).T @ x / 50, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(known.drift, known.drift.T)
    assert known.tokens == 50
    assert known.gram.dtype == known.drift.dtype == torch.float32


def test_halves_are_summed_in_single_precision() -> None:
    found = tokens(3000, 2).bfloat16()
    moments = Moments(7, has_drift=False)
    for some in found.split(100):
        moments.add(some)
    known = moments.statistics()
    exact = found.double().T @ found.double() / 3000
    assert known.drift is None
    torch.testing.assert_close(known.gram.double(), exact, rtol=1e-4, atol=1e-4)


def test_statistics_so_far_are_not_changed_by_what_comes_later() -> None:
    moments = Moments(7, has_drift=True)
    moments.add(tokens(5, 3), tokens(5, 4))
    first = moments.statistics()
    assert first.drift is not None
    kept = first.gram.clone(), first.drift.clone()
    moments.add(tokens(5, 5), tokens(5, 6))
    assert torch.equal(first.gram, kept[0]) and torch.equal(first.drift, kept[1])
    assert not torch.equal(moments.statistics().gram, first.gram)


def test_equal_inputs_have_not_drifted_at_all() -> None:
    moments = Moments(7, has_drift=True)
    moments.add(tokens(5, 3), tokens(5, 3))
    known = moments.statistics()
    assert known.drift is not None and not bool(known.drift.any())


def test_no_token_and_no_number_are_refused() -> None:
    with pytest.raises(BadInput, match="saw no token of the calibration text"):
        Moments(7, has_drift=False).statistics()
    for value in (torch.nan, torch.inf):
        damaged = tokens(5, 0)
        damaged[2, 3] = value
        with pytest.raises(BadInput, match="inputs are NaN or infinite on the calibration text"):
            Moments(7, has_drift=False).add(damaged)


def test_originals_that_were_announced_have_to_come() -> None:
    with pytest.raises(TypeError, match="need the original inputs as well"):
        Moments(7, has_drift=True).add(tokens(5, 0))


def test_no_gradient_is_kept() -> None:
    moments = Moments(7, has_drift=False)
    moments.add(tokens(5, 0).requires_grad_())
    assert not moments.statistics().gram.requires_grad
