"""Cutting units out of a tensor and putting them back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from letheon.training.active import Active, Movers
from letheon.training.memory import PeakBytes
from tests.toys import bits

TENSOR = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("active", "part"),
    [
        (Active(torch.tensor([0, 2])), TENSOR[[0, 2]]),
        (Active(torch.tensor([1, 3]), dim=1), TENSOR[:, [1, 3]]),
        (Active(torch.tensor([5, 6, 11]), is_flat=True), torch.tensor([5.0, 6.0, 11.0])),
        (Active(torch.arange(3)), TENSOR),
    ],
)
def test_cut_put_and_the_rest(active: Active, part: torch.Tensor) -> None:
    assert torch.equal(active.cut(TENSOR), part)
    changed = TENSOR.clone()
    active.put(changed, part + 100)
    assert torch.equal(active.cut(changed), part + 100)
    assert int((changed != TENSOR).sum()) == part.numel()
    active.put(changed, part)
    assert bits(changed) == bits(TENSOR)
    active.keep_only(changed)
    assert torch.equal(active.cut(changed), part) and float(changed.sum()) == float(part.sum())


def test_a_part_of_one_dimension() -> None:
    bias = torch.tensor([1.0, 2.0, 3.0])
    assert Active(torch.tensor([2])).cut(bias).tolist() == [3.0]


# --- movers


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    made = nn.Sequential(*(nn.Linear(64, 64, bias=number == 0) for number in range(6)))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made.to(dtype)


def some_rows(model: nn.Module) -> dict[str, Active]:
    """Of all weights but the second."""
    names = [name for name, _ in model.named_parameters() if name not in ("1.weight", "0.bias")]
    return {name: Active(torch.tensor([1, 5, 40])) for name in names}


def two_backwards(model: Any) -> None:
    for seed in (0, 1):
        inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
        model(inputs.to(next(model.parameters()).dtype)).float().square().mean().backward()


@pytest.mark.parametrize("is_watched", [True, False])
def test_gradients_cut_as_they_come_are_those_cut_at_the_end(is_watched: bool) -> None:
    model, other = net(), net()
    movers = Movers(dict(model.named_parameters()), some_rows(model))
    if is_watched:
        with movers.watching():
            two_backwards(model)
            left = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
        assert left == ["0.bias", "1.weight"]  # the whole ones stay where PyTorch puts them
    else:
        two_backwards(model)
    found = movers.take()
    two_backwards(other)
    expected = movers.cut([parameter.grad for parameter in other.parameters() if parameter.grad is not None])
    assert [bits(one) for one in found] == [bits(one) for one in expected]
    assert [one.shape for one in found] == [one.shape for one in movers]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [bool(one.any()) for one in movers.take()] == [False] * len(movers)
    two_backwards(model)  # nothing is watched any more
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradients_of_whole_parameters_never_stand_at_the_same_time() -> None:
    peaks = []
    for is_watched in (True, False):
        model = net()
        movers = Movers(dict(model.named_parameters()), some_rows(model))
        with PeakBytes() as counted:
            if is_watched:
                with movers.watching():
                    two_backwards(model)
            else:
                two_backwards(model)
        peaks.append(counted.peak)
    whole = 4 * 64 * 64
    assert peaks[1] - peaks[0] > 3 * whole  # five are cut, and one or two stand for a moment


def test_of_a_half_precision_model_what_moves_is_float32_and_what_is_written_is_rounded() -> None:
    model = net(torch.bfloat16)
    named = dict(model.named_parameters())
    movers = Movers(named, some_rows(model))
    assert {mover.dtype for mover in movers} == {torch.float32}
    assert [bits(one) for one in movers.seen()] == [bits(mover) for mover in movers]
    before = {name: bits(parameter) for name, parameter in named.items()}
    movers.put_back()
    assert {name: bits(parameter) for name, parameter in named.items()} == before
    with movers.watching():
        two_backwards(model)
    assert {gradient.dtype for gradient in movers.take()} == {torch.float32}
    step = 2.0**-12
    for mover in movers:
        mover.data += step
    movers.put_back()
    for (name, parameter), mover in zip(named.items(), movers, strict=True):
        units = some_rows(model).get(name)
        held = parameter if units is None else units.cut(parameter)
        assert torch.equal(held, mover.to(torch.bfloat16)), name
        exact = movers.exact(name, parameter)
        assert exact.dtype == torch.float32
        assert torch.equal(exact if units is None else units.cut(exact), mover)
        if units is not None:
            rest = [row for row in range(64) if row not in units.index.tolist()]
            assert torch.equal(exact[rest], parameter[rest].float())
    other = torch.ones(2)
    assert movers.exact("no name of theirs", other) is other


def test_what_keeps_its_dtype_is_the_parameters_themselves() -> None:
    model = net(torch.bfloat16)
    movers = Movers(dict(model.named_parameters()), keeps_dtype=True)
    assert all(mover is parameter for mover, parameter in zip(movers, model.parameters(), strict=True))
    assert len(movers) == 7 and movers[0] is next(model.parameters())
    double = net().double()
    assert all(mover is parameter for mover, parameter in zip(Movers(dict(double.named_parameters())), double.parameters(), strict=True))  # fmt: skip


def test_what_a_mover_holds_is_given_for_a_copy_on_another_device() -> None:
    """Files are written from the CPU, and what was trained on a GPU is chosen by an index there."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameter = nn.Parameter(torch.zeros(8, 4, device="cuda", dtype=torch.bfloat16))
        for active in ({"w": Active(torch.arange(3, device="cuda"))}, {}):
            movers = Movers({"w": parameter}, active)
            exact = movers.exact("w", parameter.detach().to("cpu"))
            assert (exact.device.type, exact.dtype, tuple(exact.shape)) == ("cpu", torch.float32, (8, 4))
