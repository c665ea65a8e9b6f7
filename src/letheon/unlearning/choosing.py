"""A step in the units that its own forget gradient chooses.

    g = forget gradient of the step's batch, where the weights stand        chosen: the scope's map of g
    step = balance(smoothed forget gradient, retain gradient), both cut to the chosen units
Two gradients are needed apart, so nothing is made jointly. A smoother looks along the chosen units alone; unless it
leaves the gradient as it is, that takes one forget pass more. For a scope that chooses once, or not at all, the
gradient is that of `objective`.

Source: the released code of SURE, arXiv:2410.16454, as it is meant: there the mask is never applied.
Checked against: the same two gradients with everything chosen, bit by bit; cut by hand; a gate that closes all items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from letheon.training.active import Active, Movers
from letheon.training.gradients import Gradient, Gradients, MeanGradient, Parts
from letheon.training.sharding import ALONE, Processes
from letheon.unlearning.objective import ActiveGradient, TermLoss, keep_only, make_gradient, through_balance

Choice = Callable[[Sequence[Tensor]], Mapping[str, Active] | None]
"""Forget gradient of a step -> the units that move in it, by name; None where it is not finite."""


def choice_of(scope: Any, model: nn.Module, moving: Mapping[str, nn.Parameter]) -> Choice | None:
    """How a scope chooses at every step; None for one that does not."""
    return partial(scope.active_now, model, moving) if getattr(scope, "is_refreshed", False) else None


def counts_of(scope: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name -> the steps that each unit has made, out of a scope's state; nothing where no step chooses."""
    found: dict[str, Tensor] = scope.counts(state) if getattr(scope, "is_refreshed", False) else {}
    return found


def make_step_gradient(
    *,
    movers: Movers,
    forget: TermLoss,
    retain: TermLoss | None,
    balance: Any,
    smoother: Any,
    smoother_state: dict[str, Tensor],
    pad: int,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    choose: Choice | None = None,
    processes: Processes = ALONE,
) -> Gradient:
    """The gradient of a step in whatever a scope lets move; `choose` does so anew at every step.

    `processes` says who has the rest of each logical batch.
    """
    if choose is None:
        return make_gradient(
            forget=forget,
            retain=retain,
            balance=balance,
            smoother=smoother,
            smoother_state=smoother_state,
            parameters=movers,
            pad=pad,
            autocast=autocast,
            processes=processes,
        )
    whole = MeanGradient(forget, "forget", movers, autocast, processes=processes)
    kept = None if retain is None else MeanGradient(retain, "retain", movers, autocast, processes=processes)
    return ChosenGradient(whole, kept, balance, smoother, smoother_state, movers, choose)


@dataclass(frozen=True)
class ChosenGradient:
    """Makes the choice, then the step's gradient within it."""

    forget: MeanGradient
    retain: MeanGradient | None
    balance: Any
    smoother: Any
    smoother_state: dict[str, Tensor]
    movers: Movers
    choose: Choice

    def __call__(self, model: Any, parts: Parts) -> Gradients:
        """One gradient, 0 outside of the units that it names."""
        plain = self.forget(model, parts)
        units = self.choose(plain.tensors)
        if units is None:  # what is not finite is the loop's to report
            return plain
        active = [units.get(name, _none_of(parameter)) for name, parameter in self.movers.of.items()]
        forget: Gradient
        if self.smoother.is_identity:
            keep_only(plain.tensors, active)
            forget = _Made(plain)
        else:
            alone = ActiveGradient(self.forget, active)
            forget = self.smoother.wrap(alone, self.movers, self.smoother_state)
        retain = None if self.retain is None else ActiveGradient(self.retain, active)
        found = through_balance(forget, retain, self.balance)(model, parts)
        count = sum(len(one.index) for one in units.values())
        return Gradients(found.tensors, {**found.figures, "active_units": float(count)}, units)


@dataclass(frozen=True)
class _Made:
    """A gradient that is there already."""

    found: Gradients

    def __call__(self, model: Any, parts: Parts) -> Gradients:
        return self.found


def _none_of(parameter: Tensor) -> Active:
    return Active(torch.zeros(0, dtype=torch.long, device=parameter.device))
