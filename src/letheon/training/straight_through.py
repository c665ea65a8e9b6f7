"""Train through rounding: the forward pass sees the weights as a grid holds them, the gradient passes straight.

    y = x Q(W)^T + b        dL/dW := dL/dQ(W)
for every linear layer inside the decoder's blocks; embeddings, norms and head are as they are. What is trained,
clipped, perturbed and saved is W itself, in float32; where a low-rank change stands beside a layer, W is the sum of
both, and the gradient goes on to the change. The low-bit model is then the one that the losses are about: the
reference of a log-ratio, a gate and a stop rule, asked inside, are those of the rounded original and of the rounded
model.

Source: straight-through estimator, Bengio et al. 2013, arXiv:1308.3432.  Checked against: the same model rounded in
place, bit by bit; the gradient by hand on one layer; a low-rank change beside its layer = added to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.activations import low_bit_activations
from letheon.lowbit.low_bit_pass import Basis, LowBitPass
from letheon.lowbit.matrices import fused_experts
from letheon.models import as_matrix, decoder_linears
from letheon.numerics.grids import CodebookGrid, Grid, fake_quantize
from letheon.training.low_rank import change_of, low_rank_layers

_KEPT = "_letheon_rounded"
"""Attribute of a model that goes through a grid."""


class _Straight(torch.autograd.Function):
    """Rounded values, and the gradient as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@contextmanager
def straight_through(model: Any, grid: Grid | CodebookGrid | None) -> Iterator[None]:
    """Inside, every forward pass of the model goes through the grid; None changes nothing.

    Raises:
        BadInput: no linear layers are known in this architecture, it has experts, or a group does not divide a layer's
            inputs.
    """
    if grid is None:
        yield
        return
    check_matrices(model)
    changed = low_rank_layers(model)
    within = tuple(f"{name}." for name in changed)
    linears: list[Any] = [layer for name, layer in decoder_linears(model).items() if not name.startswith(within)]
    for module in (*linears, *(layer.base_layer for layer in changed.values())):
        # What cannot be rounded says so before anything is changed.
        fake_quantize(as_matrix(module, module.weight.detach()).contiguous(), grid)
    kept = _Kept()
    try:
        for module in linears:
            module.forward = partial(_forward, module, grid, kept)
        for layer in changed.values():
            layer.forward = partial(_forward_joined, layer, grid, kept)
        vars(model)[_KEPT] = kept
        yield
    finally:
        vars(model).pop(_KEPT, None)
        for module in (*linears, *changed.values()):
            module.__dict__.pop("forward", None)


def check_matrices(model: Any) -> None:
    """Raise BadInput for a mixture of experts; its weights are not needed for that."""
    if experts := fused_experts(model):
        raise BadInput(
            f"through: {experts[0]} holds several matrices in one tensor (the experts of a mixture), and a forward "
            "pass cannot go through rounded ones yet: they would stay in full precision. Leave --through out"
        )


@contextmanager
def trained_through(model: Any, chosen: LowBitPass, basis: Basis) -> Iterator[None]:
    """Inside, every forward pass is the low-bit one: weights, activations, keys and values. Gradients pass straight.

    Args:
        model: with its weights in the basis of the pass (`take_basis`).
        chosen: what is rounded.
        basis: what is rotated while it runs.
    Raises:
        BadInput: what `straight_through` and `install` refuse.
    """
    with straight_through(model, chosen.weights):
        if chosen.grids is None:
            yield
            return
        with low_bit_activations(model, grids=chosen.grids, online=basis.online, blocks=basis.blocks):
            yield


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Inside, no weight of the model moves, so each is rounded once, however many forward passes there are.

    Who opens it answers for that: a write into `.data` could not be seen. Where there is no grid it does nothing.
    A gradient over eight texts of 64 tokens, in micro-batches of one, took 0.64 of its time, in micro-batches of four
    0.88 (w4a4kv4, 6.5 million weights, medians of five pairs, one core).
    """
    kept: _Kept | None = getattr(model, _KEPT, None)  # a model of one's own need not be a module
    if kept is None:
        yield
        return
    kept.begin()
    try:
        yield
    finally:
        kept.end()


class _Kept:
    """Rounded weights of a model at rest, by layer."""

    def __init__(self) -> None:
        self._found: dict[int, Tensor] | None = None

    def begin(self) -> None:
        """From now on nothing moves."""
        self._found = {}

    def end(self) -> None:
        """Forget all of them."""
        self._found = None

    def rounded(self, module: Any, weight: Tensor, grid: Grid | CodebookGrid) -> Tensor:
        """The weight on the grid, shaped like the weight."""
        if self._found is not None and id(module) in self._found:
            return self._found[id(module)]
        made = as_matrix(module, fake_quantize(as_matrix(module, weight.detach()).contiguous(), grid))
        if self._found is not None:
            self._found[id(module)] = made
        return made


def _forward(module: Any, grid: Grid | CodebookGrid, kept: _Kept, inputs: Tensor) -> Tensor:
    """The layer's own arithmetic with its weight on the grid; the gradient is the weight's."""
    weight = module.weight
    return _layer(module, _straight(weight, kept.rounded(module, weight, grid)), inputs)


def _forward_joined(layer: Any, grid: Grid | CodebookGrid, kept: _Kept, inputs: Tensor) -> Tensor:
    """The same with the weight and the low-rank change beside it as one, added and rounded in float32."""
    plain = layer.base_layer
    with torch.autocast(inputs.device.type, enabled=False):
        joined = plain.weight + change_of(layer)
        weight = _straight(joined, kept.rounded(plain, joined, grid))
    return _layer(plain, weight.to(inputs.dtype), inputs)


def _straight(weight: Tensor, rounded: Tensor) -> Tensor:
    straight: Tensor = _Straight.apply(weight, rounded)  # type: ignore[no-untyped-call]
    return straight


def _layer(module: Any, weight: Tensor, inputs: Tensor) -> Tensor:
    """The layer's own arithmetic with another weight."""
    if isinstance(module, torch.nn.Linear):
        return torch.nn.functional.linear(inputs, weight, module.bias)
    flat = torch.addmm(module.bias, inputs.view(-1, inputs.size(-1)), weight)  # Conv1D: (in, out)
    return flat.view(*inputs.shape[:-1], weight.shape[1])
