"""Vectors before the first token of everything that a model reads: in forward passes, and in generation with its cache.

    [v_1 ... v_k, e(t_1) ... e(t_n)]    positions 0 to k + n - 1;  the outputs at the places of v are cut out again
In a left-padded batch they stand between the padding and the tokens, as tokens would: a sliding window counts places.
The vectors are attended to by all that follows, so they stay in the cache, and each later call sees a mask with them.

Source: prompt tuning, Lester et al. 2021, arXiv:2104.08691.
Checked against: the embeddings of real tokens = these tokens in the prompt, on every architecture, with and without a
cache; no vectors = the plain model to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from letheon.errors import NotMeasured


@contextmanager
def prefixed(model: Any, vectors: Callable[[], Float[Tensor, "k width"]], *, window: int) -> Iterator[None]:
    """Inside, the model reads the vectors first.

    Args:
        vectors: gives what the input embedding would give for tokens, with a graph; (0, width) changes nothing.
        window: most positions; a longer input raises NotMeasured.
    """
    body = getattr(model, model.base_model_prefix, None)
    if body is None or body is model:
        raise NotMeasured(f"{type(model).__name__}: its body was not found, so nothing can be put before its input")
    running = _Prefix(model.get_input_embeddings(), vectors, window)
    handles = [
        body.register_forward_pre_hook(running.before, with_kwargs=True),
        body.register_forward_hook(running.after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Prefix:
    """What the two hooks remember between them."""

    def __init__(self, embedding: Any, vectors: Callable[[], Tensor], window: int) -> None:
        self.embedding, self.vectors, self.window = embedding, vectors, window
        self.kept: Tensor | None = None

    def before(self, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Put the vectors in front of the first tokens; afterwards they are in the cache."""
        given = dict(kwargs)
        ids = args[0] if args else given.pop("input_ids", None)
        vectors, mask = self.vectors(), given.get("attention_mask")
        count = len(vectors)
        self.kept = None
        if count == 0:
            return args, kwargs
        if ids is None or len(args) > 1 or (mask is not None and mask.dim() != 2):
            raise NotMeasured(f"{type(body).__name__} is not called with tokens by name, so nothing can be put first")
        cache = given.get("past_key_values")
        seen = 0 if cache is None else int(cache.get_seq_length())
        is_first = seen == 0
        rows, length = ids.shape
        if seen + length + count * is_first > self.window:
            raise NotMeasured(
                f"{count} vectors before {length} tokens do not fit into a context window of {self.window}"
            )
        padding = _padding(mask, ids)
        if mask is not None:
            given["attention_mask"] = _put(mask, mask.new_ones(count), padding)
        if (places := given.get("position_ids")) is not None:
            own = torch.arange(count, device=places.device)
            places = places.expand(rows, -1) + count
            given["position_ids"] = _put(places, own, padding) if is_first else places
        if (order := given.get("cache_position")) is not None:
            given["cache_position"] = torch.arange(count + length, device=order.device) if is_first else order + count
        if not is_first:
            return (), {**given, "input_ids": ids}
        self.kept = _places_of_own(padding, length, count)
        read = self.embedding(ids)
        return (), {**given, "input_ids": None, "inputs_embeds": _put(read, vectors.to(read), padding)}

    def after(self, body: Any, args: Any, output: Any) -> Any:
        """Cut out what the model says at the places of the vectors."""
        if self.kept is None:
            return output
        kept = self.kept.unsqueeze(-1)
        self.kept = None
        if isinstance(output, tuple):
            return (torch.take_along_dim(output[0], kept, 1), *output[1:])
        output.last_hidden_state = torch.take_along_dim(output.last_hidden_state, kept, 1)
        return output


def _padding(mask: Tensor | None, ids: Tensor) -> Int[Tensor, " batch"]:
    """Padding before the first token of each row."""
    if mask is None:
        return torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    return (mask.cumsum(1) == 0).sum(1)


def _places_of_own(padding: Int[Tensor, " batch"], length: int, count: int) -> Int[Tensor, "batch time"]:
    """Where each token of a row stands behind the vectors."""
    places = torch.arange(length, device=padding.device)
    return places + count * (places >= padding.unsqueeze(1))


def _put(own: Tensor, more: Tensor, padding: Int[Tensor, " batch"]) -> Tensor:
    """(batch, time, ...) and (k, ...) -> (batch, time + k, ...), with `more` behind each row's padding."""
    rows, length, count = len(own), own.shape[1], len(more)
    behind = torch.arange(count, device=own.device) + padding.unsqueeze(1)
    places = torch.cat([_places_of_own(padding, length, count), behind], 1)
    whole = torch.cat([own, more.expand(rows, *more.shape)], 1)
    order = places.argsort(1)
    return torch.take_along_dim(whole, order.reshape(*order.shape, *[1] * (own.dim() - 2)), 1)
