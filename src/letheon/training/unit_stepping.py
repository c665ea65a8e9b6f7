"""A step in some units of each parameter, other ones every time: moments and count of steps belong to a unit.

    of a unit that is chosen, with c the number of steps that it has made, this one among them (adamw):
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
    w <- w - rate ((m / (1 - b1^c)) / (sqrt(v / (1 - b2^c)) + 1e-8) + weight_decay w)
    of every other one: w, m, v and c stay what they are, to the bit
So a unit moves as if AdamW had seen the steps in which it was chosen, and no others. Counted over all steps instead,
the correction of a unit that is chosen late would be gone, and its first steps up to 6 times as long as the rate says.
Moments are as large as the parameters, since any unit may be chosen; sgd needs none.

Source: this project.
Checked against: PyTorch's AdamW on each unit alone, the step that was foretold, bytes of everything not chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from letheon.training.active import Active
from letheon.training.stepping import EPSILON, MOMENTS, OptimizerSettings


@dataclass(frozen=True)
class UnitSteps:
    """The optimizer's steps, unit by unit. Its state is PyTorch's: full-size moments, as checkpoints keep them."""

    optimizer: torch.optim.Optimizer
    settings: OptimizerSettings
    parameters: Mapping[str, nn.Parameter]
    counts: Mapping[str, Tensor]
    """Name -> steps that each unit has made, int32, in the order of the units; changed in place."""

    @torch.no_grad()
    def direction(self, gradients: Sequence[Tensor], units: Mapping[str, Active]) -> list[Tensor]:
        """What the coming step is the rate times of, shaped like the parameters, 0 where no unit is chosen."""
        found = []
        for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True):
            whole = torch.zeros_like(parameter)
            if name in units:
                units[name].put(whole, self._next(name, parameter, gradient, units[name])[0])
            found.append(whole)
        return found

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], units: Mapping[str, Active], rate: float) -> None:
        """Make the step.

        Args:
            gradients: one tensor a parameter, of its shape; read at the chosen units alone.
            units: name -> the units that move; a parameter without an entry stays.
            rate: the learning rate.
        """
        self._begin()
        for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True):
            if name not in units:
                continue
            chosen = units[name]
            along, moments = self._next(name, parameter, gradient, chosen)
            chosen.put(parameter.data, chosen.cut(parameter.data).sub_(along, alpha=rate))
            for key, moment in moments.items():
                chosen.put(self.optimizer.state[parameter][key], moment)
            self.counts[name][chosen.index] += 1

    def _next(
        self, name: str, parameter: nn.Parameter, gradient: Tensor, chosen: Active
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Direction and moments of the chosen units after this gradient, tensors of their own."""
        weight, slope = chosen.cut(parameter.detach()), chosen.cut(gradient)
        decay = self.settings.weight_decay
        if not MOMENTS[self.settings.name]:
            return slope.add_(weight, alpha=decay), {}
        first, second = (self._moment(parameter, key, chosen, slope) for key in MOMENTS["adamw"])
        beta1, beta2 = self.settings.betas
        first.lerp_(slope, 1 - beta1)
        second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
        count = (self.counts[name][chosen.index] + 1).double().reshape(_along(chosen, weight))
        made = first / (1 - beta1**count).to(first.dtype)
        scale = (second / (1 - beta2**count).to(second.dtype)).sqrt_().add_(EPSILON)
        return made.div_(scale).add_(weight, alpha=decay), {"exp_avg": first, "exp_avg_sq": second}

    def _moment(self, parameter: nn.Parameter, key: str, chosen: Active, like: Tensor) -> Tensor:
        memory = self.optimizer.state.get(parameter) or {}
        return chosen.cut(memory[key]) if key in memory else torch.zeros_like(like)

    def _begin(self) -> None:
        """Moments of 0 for all parameters, as PyTorch makes them in its first step."""
        if not MOMENTS[self.settings.name]:
            return
        for parameter in self.parameters.values():
            if not self.optimizer.state.get(parameter):
                moments = {key: torch.zeros_like(parameter.detach()) for key in MOMENTS[self.settings.name]}
                self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}


def _along(chosen: Active, part: Tensor) -> list[int]:
    """A shape in which one number a unit stretches over the units' entries."""
    return [len(chosen.index) if dim == chosen.dim else 1 for dim in range(part.dim())]
