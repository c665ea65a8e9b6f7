"""The gradient of one unlearning step: forget term, retain term, balance and smoother put together.

A linear balance over unsmoothed gradients is one forward and one backward pass over the forget and the retain batch
joined; any other combination makes the two gradients apart and hands them to the balance. Both are equal to the digit
where both are possible.

Source: this project.  Checked against: joint = apart, one batch of 8 = 8 of 1, alpha = 0 = no retain term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from letheon.data.batches import Batch
from letheon.errors import BadInput
from letheon.training.active import Active
from letheon.training.gradients import CurvedGradient, Gradient, Gradients, MeanGradient, Parts, take
from letheon.training.losses import Body, Outputs
from letheon.training.sharding import ALONE, Processes
from letheon.training.straight_through import at_rest
from letheon.unlearning.gate import Gate
from letheon.unlearning.geometry import check_separable, describe_step, describe_sum, measure, weighted_sum
from letheon.unlearning.passes import OtherAnswers, Wanted, one_pass

Provider = Callable[[Batch], Tensor]
"""Looks up what the original says about the items of a batch."""


@dataclass(frozen=True)
class TermLoss:
    """A forget or retain term bound to a model: collects what the term needs, and counts by its denominator."""

    term: Any
    body: Body
    reference: dict[str, Provider] = field(default_factory=dict)
    """What the original says, by the names of the needs that begin with "reference_"."""
    gate: Gate | None = None
    layer: int | None = None
    """The block that "hidden" is of."""
    others: OtherAnswers | None = None
    """Where "other_answer" comes from."""
    drawn: Mapping[str, Tensor] = field(default_factory=dict)
    """Needs that the term drew once for the whole run."""

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, int]:
        """(sum, count) of a batch, with its own forward pass."""
        return self.of(one_pass(self.body, [self.wants(batch)])[0])

    def wants(self, batch: Batch) -> Wanted:
        """What a forward pass has to find out about a batch. A gate looks at the answers' own logits."""
        layer = self.layer if "hidden" in self.term.needs else None
        other = self.others(batch) if self.others is not None and "other_answer" in self.term.needs else None
        is_elsewhere = (layer is not None or other is not None) and not {"log_probs", "logits"} & set(self.term.needs)
        return Wanted(batch, self.gate is not None or not is_elsewhere, layer, other)

    def of(self, outputs: Outputs) -> tuple[Tensor, int]:
        """(sum, count) from outputs that are already there."""
        count = self.count(outputs.batch)
        keep = None if self.gate is None else self.gate.open_items(outputs)
        if keep is not None and not bool(keep.any()):
            return outputs.logits.sum() * 0.0, count
        values = [self._value(need, outputs, keep) for need in self.term.needs]
        total = self.term.loss(*values)[0]
        return (total * 0.0 if outputs.batch.is_filler else total), count

    def count(self, batch: Batch) -> int:
        """Sequences or labelled tokens. Items that the gate has closed still count: as they close, the pull fades."""
        if batch.is_filler:
            return 0
        return len(batch.label_ids) if self.term.denominator == "token" else batch.size

    def _value(self, need: str, outputs: Outputs, keep: Tensor | None) -> Tensor:
        is_per_token = need in ("logits", "reference_logits")
        if need in self.drawn:
            return self.drawn[need]
        if need == "log_probs":
            value = outputs.log_probs(self.term.reduction)
        elif need == "hidden" and outputs.hidden is not None:
            value = outputs.hidden
        elif need == "token_shares":
            value = outputs.batch.token_shares
        elif need == "other_answer" and outputs.other is not None:
            value = outputs.other.log_probs(self.term.reduction)
        elif need == "logits":
            value = outputs.logits
        elif need in self.reference:
            value = self.reference[need](outputs.batch)
        else:
            raise BadInput(f"{type(self.term).__name__} needs {need!r}, which this run does not provide")
        if keep is None:
            return value
        return value[keep[outputs.batch.label_row]] if is_per_token else value[keep]


@dataclass(frozen=True)
class JointGradient:
    """forget_weight * grad(forget) + alpha * grad(retain) by one joined forward and one backward a micro-batch."""

    forget: TermLoss
    retain: TermLoss
    weights: tuple[float, float]
    parameters: Sequence[Tensor]
    pad: int
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    processes: Processes = ALONE

    def __call__(self, model: Any, parts: Parts) -> Gradients:
        """Counts over the logical batch first, one division."""
        forget_count = sum(self.forget.count(batch) for batch in parts["forget"])
        retain_count = sum(self.retain.count(batch) for batch in parts["retain"])
        forget_total, retain_total = self.processes.totals([forget_count, retain_count])
        values = [0.0, 0.0]
        with at_rest(model):
            for forget_batch, retain_batch in zip(parts["forget"], parts["retain"], strict=True):
                with self.autocast():
                    wanted = [self.forget.wants(forget_batch), self.retain.wants(retain_batch)]
                    found = one_pass(self.forget.body, wanted, pad=self.pad)
                    forget = self.forget.of(found[0])[0] / forget_total
                    retain = self.retain.of(found[1])[0] / retain_total
                    total = self.weights[0] * forget + self.weights[1] * retain
                total.backward()  # type: ignore[no-untyped-call]
                values[0] += float(forget.detach())
                values[1] += float(retain.detach())
        values = self.processes.totals(values)
        loss = self.weights[0] * values[0] + self.weights[1] * values[1]
        return Gradients(take(self.parameters), {"forget_loss": values[0], "retain_loss": values[1], "loss": loss})


@dataclass(frozen=True)
class BalancedGradient:
    """Two gradients made apart, each through the smoother or not, then one from the balance."""

    forget: Gradient
    retain: Gradient
    balance: Any

    def __call__(self, model: Any, parts: Parts) -> Gradients:
        """Forget first, retain second. Both are whole before they are balanced: parts of a mean have other lengths.

        Raises:
            CannotFinish: the two are exact opposites, and the balance weighs them by their directions.
        """
        forget = self.forget(model, parts)
        retain = self.retain(model, parts)
        step, found = self._combined(forget.tensors, retain.tensors)
        figures = {**forget.figures, **retain.figures, **found}
        for side, tensors in (("forget", forget.tensors), ("retain", retain.tensors)):
            if not math.isfinite(found[f"{side}_gradient_norm"]):
                return Gradients(tensors, figures)  # the loop names the tensor, which a common length would spread
        if not self.balance.is_linear:
            check_separable(figures)
        return Gradients(step, figures)

    def _combined(self, forget: list[Tensor], retain: list[Tensor]) -> tuple[list[Tensor], dict[str, float]]:
        """The step and its figures. Where the step is a weighted sum, what the log says follows from the weights."""
        if self.balance.is_linear:
            ahead = [torch.tensor(weight, device=forget[0].device) for weight in self.balance.weights]
            step = self.balance.combine(forget, retain)
            return step, describe_sum(measure(forget, retain), (ahead[0], ahead[1]))
        if not hasattr(self.balance, "coefficients"):
            step = self.balance.combine(forget, retain)
            return step, describe_step(forget, retain, step)
        pair = measure(forget, retain)
        weights = self.balance.coefficients(pair)
        return weighted_sum(forget, weights[0], retain, weights[1]), describe_sum(pair, weights)


def make_gradient(
    *,
    forget: TermLoss,
    retain: TermLoss | None,
    balance: Any,
    smoother: Any,
    parameters: Sequence[Tensor],
    pad: int,
    smoother_state: dict[str, Tensor] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    processes: Processes = ALONE,
    is_joint: bool = True,
) -> Gradient:
    """The gradient of a step: the smoother is wrapped around the forget term alone.

    `processes` says who has the rest of each logical batch.
    Of `Movers` a balance measures, and a smoother looks along, what moves alone. `is_joint=False` keeps the
    two terms apart even where one pass would do (for tests).
    """
    if retain is not None and is_joint and balance.is_linear and smoother.is_identity:
        return JointGradient(forget, retain, balance.weights, parameters, pad, autocast, processes)

    alone = MeanGradient(forget, "forget", parameters, autocast, processes=processes)
    smoothed: Gradient = smoother.wrap(alone, parameters, smoother_state or {})
    kept = None if retain is None else MeanGradient(retain, "retain", parameters, autocast, processes=processes)
    return through_balance(smoothed, kept, balance)


def through_balance(forget: Gradient, retain: Gradient | None, balance: Any) -> Gradient:
    """Two gradients through a balance; or the forget gradient by its own weight."""
    if retain is None:
        return _Scaled(forget, balance.weights[0] if balance.is_linear else 1.0)
    return BalancedGradient(forget, retain, balance)


@dataclass(frozen=True)
class ActiveGradient:
    """A gradient that is 0 where nothing may move."""

    gradient: CurvedGradient
    active: Sequence[Active | None]
    """Of each parameter; None: all of it may move."""

    def __call__(self, model: Any, parts: Parts) -> Gradients:
        """The gradient, its other entries set to 0 in place."""
        found = self.gradient(model, parts)
        keep_only(found.tensors, self.active)
        return found

    def times_hessian(self, model: Any, parts: Parts, direction: Sequence[Tensor]) -> list[Tensor]:
        """The product, its other entries set to 0: the Hessian of what may move."""
        found = self.gradient.times_hessian(model, parts, direction)
        keep_only(found, self.active)
        return found


def keep_only(tensors: Sequence[Tensor], active: Sequence[Active | None]) -> None:
    """Set all but the active units to 0, in place."""
    for tensor, units in zip(tensors, active, strict=True):
        if units is not None:
            units.keep_only(tensor)


@dataclass(frozen=True)
class _Scaled:
    """A gradient times a number."""

    gradient: Gradient
    weight: float

    def __call__(self, model: Any, parts: Parts) -> Gradients:
        found = self.gradient(model, parts)
        if self.weight != 1.0:
            torch._foreach_mul_(found.tensors, self.weight)
        return Gradients(found.tensors, {**found.figures, "loss": self.weight * found.figures["forget_loss"]})
