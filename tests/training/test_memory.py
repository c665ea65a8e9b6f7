"""Bytes of tensors at the highest moment, against peaks counted by hand."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from letheon.training.memory import OTHER, PeakBytes

N = 1000
BYTES = 4 * N
"""Of a float32 tensor of N numbers."""


def test_what_is_made_counts_and_what_is_freed_leaves() -> None:
    with PeakBytes() as counted:
        first = torch.ones(N)
        second = first + first
        assert counted.live == 2 * BYTES
        del first
        third = second * second  # takes the place of the first: no new peak
        assert (counted.live, counted.peak) == (2 * BYTES, 2 * BYTES)
        del second, third
        assert (counted.live, counted.peak) == (0, 2 * BYTES)


def test_what_only_an_expression_holds_counts_while_it_is_evaluated() -> None:
    with PeakBytes() as counted:
        kept = torch.ones(N)
        kept = (kept + 1) * 2  # at the product: kept, the sum, the product
    assert (counted.live, counted.peak) == (BYTES, 3 * BYTES)
    del kept


def test_views_share_one_storage() -> None:
    with PeakBytes() as counted:
        whole = torch.ones(10, N // 10)
        views = [whole.t(), whole[3:], whole.view(-1), whole.detach(), *whole.split(2), torch.ones(1).expand(50, 50)]
        assert (counted.live, counted.peak) == (BYTES + 4, BYTES + 4)
        del whole
        assert counted.live == BYTES + 4  # a view keeps all of it
        del views
        assert counted.live == 0


def test_dtypes_count_by_their_width() -> None:
    with PeakBytes() as counted:
        kept = [torch.ones(N, dtype=dtype) for dtype in (torch.float64, torch.bfloat16, torch.bool)]
    assert counted.live == N * (8 + 2 + 1)
    del kept


def test_in_place_takes_nothing_more() -> None:
    with PeakBytes() as counted:
        values = torch.ones(N)
        values.add_(1).mul_(2)
        values[:10].zero_()
        torch._foreach_mul_([values], 3.0)
        torch.add(values, values, out=values)
        assert (counted.live, counted.peak) == (BYTES, BYTES)


def test_a_storage_that_grows_in_place_counts_as_it_is() -> None:
    with PeakBytes() as counted:
        values = torch.ones(N)
        values.resize_(3 * N)
        assert (counted.live, counted.peak) == (3 * BYTES, 3 * BYTES)
        values.resize_(N)  # the storage stays
        assert counted.live == 3 * BYTES


def test_gradients_and_what_backward_needs() -> None:
    weight, values = torch.ones(N, requires_grad=True), torch.ones(N)
    with PeakBytes() as counted:
        loss = (weight * values).sum()
        # weight, values, their product, the sum
        assert (counted.live, counted.peak) == (2 * BYTES + 4, 3 * BYTES + 4)
        loss.backward()  # type: ignore[no-untyped-call]
        # weight, values, the sum, its gradient, the gradient
        assert counted.peak == 3 * BYTES + 4 + 4
        assert counted.live == 3 * BYTES + 4
        weight.grad = None
        assert counted.live == 2 * BYTES + 4


def test_what_is_saved_for_backward_stays_till_then() -> None:
    weight = torch.ones(N, requires_grad=True)
    with PeakBytes() as counted:
        loss = weight.exp().exp().sum()  # exp saves its result: two of them, besides weight and loss
        assert counted.live == 3 * BYTES + 4
        loss.backward()  # type: ignore[no-untyped-call]
        assert counted.live == 2 * BYTES + 4  # weight and its gradient
        # Backward lets go of each result once it is used: weight, first and second result, gradient at the first
        # (then weight, first result, that gradient, the next); the sum and its gradient.
        assert counted.peak == 4 * BYTES + 4 + 4


def test_a_step_of_adamw() -> None:
    weight = nn.Parameter(torch.ones(N))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    with PeakBytes() as counted:
        weight.grad = torch.ones(N)
        optimizer.step()
        assert counted.live == 4 * BYTES + 4  # weight, gradient, two moments, a count of steps
        weight.grad = None
        assert counted.live == 3 * BYTES + 4


def test_what_was_there_before_counts_from_its_first_use_or_when_told() -> None:
    used, told, unused = torch.ones(N), torch.ones(N), torch.ones(N)
    with PeakBytes() as counted:
        assert counted.live == 0
        _ = used.sum()
        assert counted.peak == BYTES + 4
        counted.hold([told, "not a tensor", told[2:]])
        assert counted.live == 2 * BYTES + 4
    del unused


def test_one_count_inside_another() -> None:
    with PeakBytes() as outer:
        before = torch.ones(N)
        with PeakBytes() as inner:
            made = torch.ones(2 * N)
            both = before + made[:N]
            assert (inner.live, inner.peak) == (4 * BYTES, 4 * BYTES)
            del both
            assert inner.live == 3 * BYTES
        del made
        after = torch.ones(N)
        assert (outer.live, outer.peak) == (2 * BYTES, 4 * BYTES)
        assert inner.peak == 4 * BYTES  # what came later is none of its business
    del before, after


def test_labels_add_up_to_the_peak() -> None:
    with PeakBytes() as counted:
        weights = torch.ones(N)
        counted.label("weights", [weights])
        late = torch.ones(2 * N)
        temporary = torch.ones(4 * N)
        del temporary
        counted.label("late", [late[5:]])  # after the peak, by a view
        small = torch.ones(N)
        assert counted.at_peak() == {"weights": BYTES, "late": 2 * BYTES, OTHER: 4 * BYTES}
        assert sum(counted.at_peak().values()) == counted.peak
        del small


def test_at_the_peak_now_is_what_is_alive_now() -> None:
    with PeakBytes() as counted:
        assert counted.at_peak() == {}
        values = torch.ones(N)
        counted.label("values", [values])
        assert counted.at_peak() == {"values": BYTES}


@pytest.mark.parametrize("without_values", ["fake", "meta"])
def test_tensors_without_values_count_like_real_ones(without_values: str) -> None:
    def work(device: str) -> None:
        layers = nn.Sequential(nn.Linear(30, 50, device=device), nn.ReLU(), nn.Linear(50, 3, device=device))
        for _ in range(2):
            layers(torch.ones(7, 30, device=device)).square().mean().backward()

    with PeakBytes() as real:
        work("cpu")
    if without_values == "fake":
        with FakeTensorMode(), PeakBytes() as counted:
            work("cpu")
    else:
        with PeakBytes() as counted:
            work("meta")
    assert (counted.peak, counted.live) == (real.peak, real.live)
    assert real.peak > 4 * 2 * (30 * 50 + 50 + 50 * 3 + 3)  # weights and gradients at least


def test_what_outlives_its_count_is_no_trouble() -> None:
    with PeakBytes() as counted:
        values = torch.ones(N)
    kept = counted.peak
    del values  # after the context, before the count itself goes
    assert (counted.live, counted.peak) == (0, kept)
    with PeakBytes() as counted:
        values = torch.ones(N)
    del counted
    gc.collect()
    del values


def test_an_address_that_is_used_again_is_a_new_tensor() -> None:
    with PeakBytes() as counted:
        for _ in range(50):
            values = torch.ones(N)
            counted.label("first", [values])
            del values
        last = torch.ones(2 * N)
        assert counted.at_peak() == {OTHER: 2 * BYTES}
        assert counted.live == last.untyped_storage().nbytes()


def test_a_blueprint_beside_real_tensors_is_no_memory() -> None:
    with PeakBytes(counts_meta=False) as counted:
        kept = torch.ones(100)
        blueprint = torch.empty(10_000, device="meta")
        other = kept + 1
    assert counted.peak == 800 and blueprint.is_meta and len(other) == 100
