"""What goes through a decoder's blocks: hidden states of calibration sequences, and what each linear hears of them.

A block is called as the model calls it: whatever stands beside the hidden states (positions, masks) is taken from the
model's own call of that very block, since blocks of different kinds are given different masks. It depends on the shape
of a batch alone, so batches of one shape share it. Hidden states stay on the CPU and visit the device batch by batch,
so the device holds one block, one batch, and what stands beside one batch of each shape.

Source: this project.
Checked against: the last hidden states of a whole forward pass, every architecture and blocks of two kinds; inputs by
hooks on the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from letheon.errors import BadInput
from letheon.lowbit.architectures import BlockLayout, ModelLayout


@dataclass(frozen=True, eq=False)
class Call:
    """What the model hands a block beside the hidden states, on the device."""

    beside: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some sequences on their way, and how the blocks are called with them."""

    hidden: Float[Tensor, "sequences time width"]
    """On the CPU."""
    calls: Mapping[str, Call]
    """Block -> its call."""


@dataclass(frozen=True, eq=False)
class Routed:
    """What reaches the experts of a block, on the CPU."""

    hidden: Float[Tensor, "tokens width"]
    chosen: Int64[Tensor, "tokens chosen"]
    """Which experts each token is routed to."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What was heard in a block, of one batch, on the CPU."""

    linears: Mapping[str, Float[Tensor, "tokens inputs"]]
    experts: Routed | None


class _Reached(Exception):
    """What was wanted has been heard; no error."""


@torch.no_grad()
def first_batches(
    model: Any, layout: ModelLayout, ids: Int64[Tensor, "sequences length"], *, size: int, device: str
) -> list[Batch]:
    """What reaches the first block, and how every block is called: the model runs around its blocks, not through."""
    found: list[Batch] = []
    calls: dict[torch.Size, dict[str, Call]] = {}

    def hear(block: BlockLayout) -> Callable[..., None]:
        def hook(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden, *beside = (named.pop("hidden_states"), *arguments) if "hidden_states" in named else arguments
            so_far = calls.setdefault(hidden.shape[:2], {})
            if block is layout.blocks[0]:
                found.append(Batch(hidden.cpu(), so_far))
            if block.name not in so_far:
                so_far[block.name] = Call(tuple(beside), dict(named))
            if len(so_far) == len(layout.blocks):
                raise _Reached

        return hook

    with _outside_on(model, layout, device), _passed_over(model, layout):
        hooks = [
            model.get_submodule(block.name).register_forward_pre_hook(hear(block), with_kwargs=True)
            for block in layout.blocks
        ]
        try:
            for some in torch.split(ids, size):
                with suppress(_Reached):
                    model(input_ids=some.to(device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    return found


@torch.no_grad()
def through(model: Any, block: BlockLayout, batch: Batch, *, device: str) -> Batch:
    """The batch behind a block, which stands on `device`.

    Raises:
        BadInput: NaN or infinity come out.
    """
    found = _call(model, block, batch, device)
    hidden = found[0] if isinstance(found, tuple) else found
    if not bool(torch.isfinite(hidden).all()):
        raise BadInput(
            f"block {block.name}: NaN or infinite outputs on the calibration text. The model is damaged, or its "
            "numbers do not fit into its dtype"
        )
    return replace(batch, hidden=hidden.cpu())


@torch.no_grad()
def through_hearing(
    model: Any, block: BlockLayout, batch: Batch, names: Sequence[str], *, device: str
) -> tuple[Batch, Heard]:
    """The batch behind a block, and what was heard in it, in one pass. Raises what `through` raises.

    Args:
        names: linears of the block; its experts are heard unasked.
    """
    with _listening(model, [*names, *([block.experts] if block.experts else [])], is_to_end=True) as given:
        behind = through(model, block, batch, device=device)
    experts = None if block.experts is None else _routed(given[block.experts])
    return behind, Heard({name: _tokens(given[name]).cpu() for name in names}, experts)


@torch.no_grad()
def heard(model: Any, block: BlockLayout, batch: Batch, names: Sequence[str], *, device: str) -> dict[str, Tensor]:
    """Name -> what that linear of the block hears, (tokens, inputs), on the device. Runs no further than needed."""
    with _listening(model, names) as given, suppress(_Reached):
        _call(model, block, batch, device)
    return {name: _tokens(given[name]) for name in names}


@torch.no_grad()
def heard_as_called(model: Any, block: BlockLayout, batch: Batch, name: str, *, device: str) -> tuple[Tensor, ...]:
    """What one module of the block is called with. Runs no further than needed."""
    with _listening(model, [name]) as given, suppress(_Reached):
        _call(model, block, batch, device)
    return given[name]


def routed(model: Any, block: BlockLayout, batch: Batch, *, device: str) -> Routed:
    """What reaches the block's experts; none of them runs."""
    assert block.experts is not None
    return _routed(heard_as_called(model, block, batch, block.experts, device=device))


def _tokens(given: tuple[Tensor, ...]) -> Float[Tensor, "tokens inputs"]:
    return given[0].reshape(-1, given[0].shape[-1])


def _routed(given: tuple[Tensor, ...]) -> Routed:
    hidden, chosen, *_ = given
    return Routed(hidden.reshape(-1, hidden.shape[-1]).cpu(), chosen.reshape(-1, chosen.shape[-1]).cpu())


@contextmanager
def _listening(model: Any, names: Sequence[str], *, is_to_end: bool = False) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Name -> what that module is called with inside. Raises _Reached when all were called, unless it is to the end."""
    found: dict[str, tuple[Tensor, ...]] = {}

    def listener(name: str) -> Callable[..., None]:
        def hear(_: Any, arguments: tuple[Tensor, ...]) -> None:
            found[name] = arguments
            if len(found) == len(names) and not is_to_end:
                raise _Reached

        return hear

    hooks = [model.get_submodule(name).register_forward_pre_hook(listener(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def mean_loss(
    model: Any, layout: ModelLayout, batches: Sequence[Batch], ids: Int64[Tensor, "sequences length"], *, device: str
) -> float:
    """Mean next-token loss, nats a token, of hidden states that have left the last block."""
    norm, head = on(model.get_submodule(layout.final_norm), device), on(model.get_output_embeddings(), device)
    total, place = 0.0, 0
    for batch in batches:
        for hidden, tokens in zip(batch.hidden, ids[place : place + len(batch.hidden)], strict=True):
            logits = head(norm(hidden.to(device)))[:-1].float()  # one sequence: logits are the largest tensor there is
            total += float(nn.functional.cross_entropy(logits, tokens[1:].to(device), reduction="sum"))
        place += len(batch.hidden)
    return total / (ids.shape[0] * (ids.shape[1] - 1))


@torch.no_grad()
def mean_divergence(
    model: Any, layout: ModelLayout, before: Sequence[Batch], now: Sequence[Batch], *, device: str
) -> float:
    """Mean KL(p || q) over all tokens, nats: p is predicted from the states of `before`, q from those of `now`.

    At least 0, and 0 for equal states. Where a loss on text may fall by chance, this does not.
    """
    norm, head = on(model.get_submodule(layout.final_norm), device), on(model.get_output_embeddings(), device)
    total, tokens = 0.0, 0
    for one, other in zip(before, now, strict=True):
        for hidden, changed in zip(one.hidden, other.hidden, strict=True):
            p, q = (head(norm(states.to(device))).float().log_softmax(-1) for states in (hidden, changed))
            total += float(nn.functional.kl_div(q, p, reduction="sum", log_target=True))
            tokens += len(hidden)
    return total / tokens


def _call(model: Any, block: BlockLayout, batch: Batch, device: str) -> Any:
    call = batch.calls[block.name]
    return model.get_submodule(block.name)(batch.hidden.to(device), *call.beside, **call.named)


def _passed_over(model: Any, layout: ModelLayout) -> AbstractContextManager[None]:
    """Inside, blocks give back the hidden states that they are given."""

    def unchanged(*arguments: Any, **named: Any) -> Any:
        return named["hidden_states"] if "hidden_states" in named else arguments[0]

    return standing_in(model, {block.name: unchanged for block in layout.blocks})


@contextmanager
def standing_in(model: Any, forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, some modules do something else when they are called.

    Args:
        forwards: module -> what is called in the place of its `forward`.
    """
    modules = {model.get_submodule(name): forward for name, forward in forwards.items()}
    before = {module: module.__dict__.get("forward") for module in modules}
    try:
        for module, forward in modules.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


@contextmanager
def _outside_on(model: Any, layout: ModelLayout, device: str) -> Iterator[None]:
    """What stands before the blocks is on the device, and the blocks where they were."""
    prefixes = tuple(f"{block.name}." for block in layout.blocks)
    blocks = {block.name for block in layout.blocks}
    outside = [
        module
        for name, module in model.named_modules()
        if name not in blocks and not name.startswith(prefixes) and name != layout.head and not list(module.children())
    ]
    for module in outside:
        on(module, device)
    yield


def on(module: nn.Module, device: str) -> nn.Module:
    """The module on a device; untouched where it is there already (tensors without values cannot be moved)."""
    there = [*module.parameters(), *module.buffers()]
    wanted = torch.device(device)
    if any(tensor.device.type != wanted.type or wanted.index not in (None, tensor.device.index) for tensor in there):
        module.to(device)
    return module
