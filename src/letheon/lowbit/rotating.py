"""Rotate a model's weights so that its function stays: norms folded away, one rotation of the stream, one of each head.

W is (out, in), gamma and beta a norm's gain and bias, u a row vector of ones / sqrt(width):
    fold    W <- W diag(gamma), b <- b + W beta for all that read a norm; gain 1, bias 0
    R1  Q   embeddings E <- E Q; readers of norms and the head W <- W Q; o and down W <- Q^T W, b <- b Q
    R2      values of a head v <- v R2 (rows and bias of v), the inputs of o that come from it W <- W R2
    R4      W <- W R4 in down, whose input is rotated while the model runs
A norm divides by the length of a vector, which Q keeps. A LayerNorm takes the mean off first, so there Q must keep the
mean as well: Q = R (I - 2 w w^T / |w|^2) with w = u R - u has u Q = u. That changes entries of R by about 1 / width and
makes a change of the architecture unnecessary: a rotated GPT-2 is a GPT-2, and any software loads it.
Where the readers of a norm have no bias that could take beta (a head), it stays in the norm as (beta / gamma) Q.
A tied head gets a weight of its own, since the embedding takes no gain. All products are float64.

Source: QuaRot arXiv:2404.00456, SpinQuant arXiv:2405.16406 (the places); keeping the mean instead of removing it: here.
Checked against: logits of every architecture in float64 to 1e-10, with lively norms and biases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from letheon.errors import BadInput
from letheon.lowbit.architectures import BlockLayout, ModelLayout, gain, model_layout, set_gain
from letheon.lowbit.online import MARKER, OnlineRotations, describe_online
from letheon.lowbit.site_errors import SiteChoice
from letheon.models import as_matrix
from letheon.numerics.hadamard import Hadamard, is_known, random_signs

_LARGEST_RATIO = 1e4
"""Of a norm's bias to its gain where it has to stay: above it float32 would lose what is left of the sum."""
_AT_ONCE = 2**24
"""Weights that are worked on in float64 at once: 512 MiB in all."""
SITES = ("residual", "values", "keys", "down")
"""R1, R2, R3, R4."""

Turn = Callable[[Tensor], Tensor]
"""(..., width) float64 -> the same times Q."""


@runtime_checkable
class Turning(Protocol):
    """What turns vectors of channels, there and back: a `Hadamard`."""

    def rotate(self, x: Tensor) -> Tensor: ...

    def restore(self, y: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotated:
    """What was done to a model."""

    online: OnlineRotations
    """What it needs from now on while it runs."""
    is_untied: bool
    """The head has got a weight of its own: the file grows by an embedding."""
    choices: tuple[SiteChoice, ...] = ()
    """Of a rotation that chooses."""


def site_rotation(site: str, size: int, *, seed: int) -> Hadamard:
    """The rotation of a site, the same for all blocks; a function of site, size and seed alone."""
    generator = torch.Generator().manual_seed(len(SITES) * seed + SITES.index(site))
    return Hadamard(size=size, signs=random_signs(size, generator))


def widths(model: Any, layout: ModelLayout) -> dict[str, int]:
    """Site -> the channels that are rotated there."""
    block = layout.blocks[0]
    found = {"residual": layout.width, "values": block.head_dim, "keys": block.head_dim}
    if block.down is not None:
        found["down"] = _matrix(model, block.down).shape[1]
    return found


def check_rotatable(model: Any, sites: tuple[str, ...], *, block_diagonal: bool) -> ModelLayout:
    """The model's layout, if those sites of it can be rotated. Works on the meta device, before weights are loaded.

    Raises:
        BadInput: with everything that stands against it.
    """
    layout = model_layout(model)
    problems = []
    if getattr(model.config, MARKER, None) is not None:
        problems.append("the model has been rotated already. Take the one it was made from")
    if getattr(model.config, "quantization_config", None) is not None:
        problems.append("the model is quantized already. Rotate the full-precision one, then quantize")
    if layout.blocks[0].experts is not None:
        problems.append("a mixture of experts cannot be rotated yet. Use rotation none")
    known = widths(model, layout)
    for site in sites:
        size = known.get(site)
        if size is not None and not is_known(size) and not block_diagonal:
            problems.append(
                f"rotation {site}: no Hadamard matrix of order {size} is known here. Switch it off ({site}: false), or "
                f"rotate in blocks of {size & -size} channels (block_diagonal: true)"
            )
    if problems:
        raise BadInput(problems)
    return layout


@torch.no_grad()
def fold_norms(model: Any, layout: ModelLayout) -> bool:
    """Give every norm gain 1 and, where its readers have biases, bias 0. Returns whether the head had to be untied.

    Raises:
        BadInput: a norm that cannot be folded because a bias stands on a gain of about 0.
    """
    _check_loaded(model)
    is_untied = untie_head(model, layout)
    for block in layout.blocks:
        for norm, readers in block.readers.items():
            _fold(model, norm, readers, block.norm_kind)
    _fold(model, layout.final_norm, (layout.head,), layout.norm_kind)
    return is_untied


@torch.no_grad()
def rotate_residual(model: Any, layout: ModelLayout, rotation: Hadamard) -> None:
    """R1, merged. The norms must have been folded."""
    turn = _keeping_mean(rotation) if layout.norm_kind == "layer" else rotation.rotate
    for table in (layout.embedding, layout.positions):
        if table is not None:
            _turn_rows(model.get_submodule(table).weight, turn)
    for block in layout.blocks:
        for reader in (name for readers in block.readers.values() for name in readers):
            _turn_rows(_matrix(model, reader), turn)
        for writer in (block.output, block.down):
            if writer is not None:
                _turn_outputs(model.get_submodule(writer), turn)
        for norm in block.readers:
            _turn_bias(model.get_submodule(norm), turn)
    _turn_bias(model.get_submodule(layout.final_norm), turn)
    _turn_rows(_matrix(model, layout.head), turn)


@torch.no_grad()
def rotate_values(model: Any, block: BlockLayout, rotation: Turning) -> None:
    """R2, merged: every head of the values, and what the output linear makes of it."""
    _turn_values(model, block, rotation.rotate)


@torch.no_grad()
def unrotate_values(model: Any, block: BlockLayout, rotation: Turning) -> None:
    """What `rotate_values` did is taken back, up to the rounding of the weights' dtype."""
    _turn_values(model, block, rotation.restore)


@torch.no_grad()
def rotate_down(model: Any, block: BlockLayout, rotation: Turning) -> None:
    """R4, the half that is merged; the input is rotated by hooks."""
    assert block.down is not None
    _turn_rows(_matrix(model, block.down), rotation.rotate)


@torch.no_grad()
def unrotate_down(model: Any, block: BlockLayout, rotation: Turning) -> None:
    """What `rotate_down` did is taken back, up to the rounding of the weights' dtype."""
    assert block.down is not None
    _turn_rows(_matrix(model, block.down), rotation.restore)


def turn_site(model: Any, block: BlockLayout, site: str, rotation: Turning | None, *, back: bool = False) -> None:
    """The half of a block's rotation that is merged, or taken back; R3 has none.

    Args:
        site: "values", "keys" or "down".
        rotation: None leaves everything as it is.
    """
    turns = {"values": (rotate_values, unrotate_values), "down": (rotate_down, unrotate_down)}
    if rotation is not None and site in turns:
        turns[site][back](model, block, rotation)


def turned_parameters(model: Any, block: BlockLayout, site: str | None = None) -> tuple[str, ...]:
    """Names of the parameters that `turn_site` writes; of all sites where none is named."""
    linears = {"values": (block.value, block.output), "keys": (), "down": (block.down,) if block.down else ()}
    wanted = linears[site] if site is not None else tuple(name for names in linears.values() for name in names)
    found = [f"{name}.weight" for name in wanted]
    if block.value in wanted and model.get_submodule(block.value).bias is not None:
        found.append(f"{block.value}.bias")
    return tuple(found)


def without_down(weight: Float[Tensor, "out in"], rotation: Hadamard) -> Float[Tensor, "out in"]:
    """A copy of a weight that `rotate_down` made, as `unrotate_down` would leave it, to the bit."""
    found = weight.detach().clone()
    _turn_rows(found, rotation.restore)
    return found


def mark_rotated(model: Any, settings: dict[str, Any], online: OnlineRotations) -> None:
    """Write into the configuration what was done, and what the model needs while it runs."""
    setattr(model.config, MARKER, {"method": settings, "online": describe_online(online)})


def _check_loaded(model: Any) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise BadInput("the model is on the meta device and has no weights to rotate. Load it first")


def untie_head(model: Any, layout: ModelLayout) -> bool:
    """Give a tied head a weight of its own; whether it had none."""
    head = model.get_submodule(layout.head)
    if head.weight is not model.get_submodule(layout.embedding).weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
    return True


def _fold(model: Any, name: str, readers: tuple[str, ...], kind: Any) -> None:
    norm = model.get_submodule(name)
    gains = gain(norm, kind).double()
    bias = getattr(norm, "bias", None)
    modules = [model.get_submodule(reader) for reader in readers]
    if bias is not None and bool(bias.any()):
        if all(module.bias is not None for module in modules):
            for module in modules:
                added = as_matrix(module, module.weight).double() @ bias.double()
                module.bias.copy_(module.bias.double() + added)
            bias.zero_()
        else:
            bias.copy_(_kept_bias(bias.double(), gains, name))
    for module in modules:
        for rows in _slabs(as_matrix(module, module.weight)):
            rows.copy_(rows.double() * gains)
    set_gain(norm, kind, torch.ones_like(norm.weight))


def _kept_bias(bias: Float[Tensor, " width"], gains: Float[Tensor, " width"], name: str) -> Float[Tensor, " width"]:
    """Beta / gamma: the bias in front of a gain that now stands in the readers."""
    is_lost = bias.abs() > _LARGEST_RATIO * gains.abs()
    if bool(is_lost.any()):
        channel = int(is_lost.nonzero()[0])
        raise BadInput(
            f"norm {name}: channel {channel} has gain {float(gains[channel]):.1e} and bias {float(bias[channel]):.1e}, "
            "and what reads it has no bias, so it cannot be folded. Use residual: false"
        )
    return torch.where(bias == 0, 0.0, bias / torch.where(bias == 0, 1.0, gains))


def _keeping_mean(rotation: Hadamard) -> Turn:
    """Q with u Q = u: the rotation, then a reflection that carries u R back to u."""
    ones = torch.full((rotation.size,), rotation.size**-0.5, dtype=torch.float64)
    apart = rotation.rotate(ones) - ones
    square = apart @ apart

    def turn(x: Tensor) -> Tensor:
        turned = rotation.rotate(x)
        if float(square) < 1e-20:
            return turned
        across = apart.to(x.device)
        return turned - (2 / square.to(x.device)) * (turned @ across)[..., None] * across

    return turn


def _turn_values(model: Any, block: BlockLayout, turn: Turn) -> None:
    value = model.get_submodule(block.value)
    rows = block.rows("value")
    weight = as_matrix(value, value.weight)
    heads = weight[rows].double()  # (heads, channels, in)
    weight[rows] = turn(heads.transpose(1, 2)).transpose(1, 2).to(weight.dtype)
    if value.bias is not None:
        value.bias[rows] = turn(value.bias[rows].double()).to(weight.dtype)
    output = _matrix(model, block.output)
    by_head = output.double().reshape(len(output), block.heads, block.head_dim)
    output.copy_(turn(by_head).reshape(output.shape))


def _matrix(model: Any, name: str) -> Tensor:
    module = model.get_submodule(name)
    return as_matrix(module, module.weight)


def _turn_rows(weight: Tensor, turn: Turn) -> None:
    """W <- W Q, some rows at a time: a turn holds four float64 copies of what it is given."""
    for rows in _slabs(weight):
        rows.copy_(turn(rows.double()))


def _slabs(weight: Tensor) -> tuple[Tensor, ...]:
    """Views of rows, few enough that float64 copies of them are small beside a model."""
    return torch.split(weight, max(1, _AT_ONCE // weight.shape[1]))


def _turn_outputs(module: Any, turn: Turn) -> None:
    """W <- Q^T W, b <- b Q."""
    _turn_rows(as_matrix(module, module.weight).T, turn)
    _turn_bias(module, turn)


def _turn_bias(module: Any, turn: Turn) -> None:
    bias = getattr(module, "bias", None)
    if bias is not None:
        bias.copy_(turn(bias.double()))
