"""The part of a parameter that may move, cut out: what has no gradient needs no optimizer state either.

A row, a column or a single entry of a weight is a unit. `cut` takes the active units out of a tensor shaped like the
parameter, `put` writes them back; everything else is never written, and so stays what it was to the bit, whatever
weight decay and momentum do.

Source: this project.
Checked against: put(cut) is the identity, untouched entries bit by bit; gradients cut as they come = cut at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import overload

import torch
from jaxtyping import Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Active:
    """Some units of one parameter."""

    index: Int[Tensor, " units"]
    """Which ones, rising."""
    dim: int = 0
    """The dimension that counts units."""
    is_flat: bool = False
    """Units are single entries, counted over the flattened parameter."""

    def cut(self, tensor: Tensor) -> Tensor:
        """The active units, a tensor of their own."""
        return self._view(tensor).index_select(self.dim, self.index.to(tensor.device))

    @torch.no_grad()
    def put(self, tensor: Tensor, part: Tensor) -> None:
        """Write the active units in place."""
        self._view(tensor).index_copy_(self.dim, self.index.to(tensor.device), part)

    @torch.no_grad()
    def keep_only(self, tensor: Tensor) -> None:
        """Set everything else to 0, in place."""
        part = self.cut(tensor)
        tensor.zero_()
        self.put(tensor, part)

    def _view(self, tensor: Tensor) -> Tensor:
        return tensor.view(-1) if self.is_flat else tensor


class Movers(Sequence[Tensor]):
    """What an optimizer moves: the parameters themselves, or tensors of their own.

    A parameter of which some units only may move has these as a tensor of its own; one that the model holds in a half
    precision has a float32 copy (a master), unless `keeps_dtype`. Gradients, moments and whatever a smoother or a
    balance looks at have their shape and dtype, and `put_back` writes what they hold into the model. A sequence of
    them, in the order of the parameters.
    """

    def __init__(
        self,
        moving: Mapping[str, nn.Parameter],
        active: Mapping[str, Active] | None = None,
        *,
        keeps_dtype: bool = False,
    ) -> None:
        self._moving = moving
        self._active = active or {}
        self._keeps_dtype = keeps_dtype
        self._found: dict[str, Tensor] = {}  # gradients so far of those that are tensors of their own
        self.of: dict[str, nn.Parameter] = {name: self._mover(name, parameter) for name, parameter in moving.items()}
        self._own = {name: parameter for name, parameter in moving.items() if self.of[name] is not parameter}

    def __len__(self) -> int:
        return len(self.of)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.of.values())

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, place: int | slice) -> Tensor | Sequence[Tensor]:
        return list(self.of.values())[place]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that they belong to."""
        return list(self._moving.values())

    def cut(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to the movers of tensors shaped like the parameters."""
        return [self._cut(name, tensor) for name, tensor in zip(self._moving, tensors, strict=True)]

    def widen(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The reverse: shaped like the parameters, 0 where nothing is active."""
        found = []
        for (name, parameter), tensor in zip(self._moving.items(), tensors, strict=True):
            if name in self._active:
                whole = torch.zeros(parameter.shape, dtype=tensor.dtype, device=tensor.device)
                self._active[name].put(whole, tensor)
                tensor = whole
            found.append(tensor)
        return found

    @torch.no_grad()
    def put_back(self) -> None:
        """Write what was moved into the parameters."""
        for name, parameter in self._own.items():
            if name in self._active:
                self._active[name].put(parameter.data, self.of[name].detach().to(parameter.dtype))
            else:
                parameter.data.copy_(self.of[name].detach())

    @torch.no_grad()
    def seen(self) -> list[Tensor]:
        """What the model holds of each, as it is rounded there."""
        held = self.cut(self.parameters)
        return [one.detach().to(mover.dtype) for one, mover in zip(held, self, strict=True)]

    @torch.no_grad()
    def exact(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the model with what its mover holds in it, not rounded to the model's precision."""
        if name not in self._own or self.of[name].dtype == tensor.dtype:
            return tensor
        whole = tensor.to(self.of[name].dtype)
        if name not in self._active:
            return whole.copy_(self.of[name].detach())
        self._active[name].put(whole, self.of[name].detach().to(whole.device))
        return whole

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, a gradient is cut as soon as it is made: those of whole parameters never stand at the same time."""
        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._keep, name))  # type: ignore[no-untyped-call]
            for name, parameter in self._own.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def take(self) -> list[Tensor]:
        """Move the gradients out; a mover that had no part in the loss gets zeros."""
        taken: list[Tensor] = []
        for name, parameter in self._moving.items():
            self._keep(name, parameter)
            found = self._found.pop(name, None)
            taken.append(torch.zeros_like(self.of[name]) if found is None else found)
        return taken

    def _keep(self, name: str, parameter: Tensor) -> None:
        """Add what stands in a parameter's `.grad` to what was found of it."""
        if parameter.grad is None:
            return
        part = self._cut(name, parameter.grad).to(self.of[name].dtype)
        parameter.grad = None
        if name in self._found:
            self._found[name].add_(part)
        else:
            self._found[name] = part

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        return self._active[name].cut(tensor) if name in self._active else tensor

    def _mover(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        dtype = parameter.dtype if self._keeps_dtype else torch.promote_types(parameter.dtype, torch.float32)
        if name not in self._active and dtype == parameter.dtype:
            return parameter
        part = self._cut(name, parameter.detach())
        return nn.Parameter(part.to(dtype))
