"""A share of every linear's weights set to 0: those that matter least, or those that matter to the forgotten alone.

    score S_ij = |W_ij| root(sum over tokens of x_j^2)    x: what the layer reads;  k = floor(share * inputs) > 0
    wanda               in each row i the k lowest scores on retained records are dropped
    forget_difference   in each row i dropped is what is among the k highest on V and not among the k highest on
                        retained records: what holds the forgotten down, if anything does. T is asked
k is at least 1. Ties go by the place in the row. A mixture's experts are no linears, so such a model is not measured.

Source: Wanda, Sun et al. 2023, arXiv:2306.11695; the difference of sets, Wei et al. 2024, arXiv:2402.05162, here with
one share for both sets.  Checked against: the published selection on the same scores, norms summed token by token,
padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from letheon.audits.attacker import Attacker, Target
from letheon.data.batches import by_length
from letheon.data.encode import Example
from letheon.errors import BadInput, NotMeasured, require
from letheon.lowbit.matrices import fused_experts
from letheon.models import as_matrix, decoder_linears


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Which weights, and how many."""

    which: Literal["wanda", "forget_difference"] = "wanda"
    """wanda: what matters least to retained records; forget_difference: what matters to the forgotten ones alone."""
    shares: tuple[float, ...] = (0.01, 0.05, 0.2)
    """Of a row's weights, each in [0, 1): a row of the matrix for each. The differences of sets were published for
    0.005 to 0.05."""

    along: ClassVar[str] = "shares"

    def __post_init__(self) -> None:
        usable = len(self.shares) > 0 and all(0 <= share < 1 for share in self.shares)
        require(
            usable and len(set(self.shares)) == len(self.shares),
            f"prune needs different shares in [0, 1), got {list(self.shares)}",
        )

    @property
    def folds(self) -> int:
        """2 where the attacker has to know some of the forgotten."""
        return 2 if self.which == "forget_difference" else 0

    @property
    def label(self) -> str:
        """The row's name for readers."""
        shares = "/".join(f"{100 * share:g}" for share in sorted(self.shares))
        return f"pruned{' where it matters to the forgotten alone' if self.folds else ''}, {shares} %"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        shares = ", ".join(f"{100 * share:g} %" for share in sorted(self.shares))
        if not self.folds:
            return f"{shares} of each row set to 0, lowest |w| times input norm on retained records (Wanda)"
        return (
            f"set to 0: the {shares} of each row that matter most (|w| times input norm) to one half of the people to "
            "be forgotten and not to retained records; asked about the other; both ways round"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[float], None]) -> None:
        """Drop weights, and call `then(share)` for each share.

        Raises:
            NotMeasured: no retained records, nothing learned, experts, or inputs that are not finite.
        """
        if fused_experts(target.model):
            raise NotMeasured("what a mixture's experts read is not seen, so their weights cannot be scored")
        try:
            layers = decoder_linears(target.model)
        except BadInput as error:
            raise NotMeasured(str(error)) from error
        kept = input_norms(target, attacker.kept("retain"), layers)
        learned = input_norms(target, attacker.learned, layers) if self.folds else None
        start = {name: _matrix(layer).clone() for name, layer in layers.items()}
        for share in sorted(self.shares):
            for name, layer in layers.items():
                scores = start[name].abs() * kept[name]
                if learned is None:
                    dropped = lowest(scores, share)
                else:
                    dropped = highest(start[name].abs() * learned[name], share) & ~highest(scores, share)
                _matrix(layer).copy_(start[name].masked_fill(dropped, 0.0))
            then(share)


def _matrix(layer: Any) -> Tensor:
    """(out, in), a view without a gradient."""
    return as_matrix(layer, layer.weight.detach())


def lowest(scores: Float[Tensor, "out in"], share: float) -> Bool[Tensor, "out in"]:
    """The k lowest of each row; of equal ones the first."""
    return _first(scores.argsort(dim=1, stable=True), share)


def highest(scores: Float[Tensor, "out in"], share: float) -> Bool[Tensor, "out in"]:
    """The k highest of each row; of equal ones the first."""
    return _first(scores.argsort(dim=1, stable=True, descending=True), share)


def _first(order: Tensor, share: float) -> Tensor:
    chosen = torch.zeros_like(order, dtype=torch.bool)
    count = max(int(share * order.shape[1]), 1) if share else 0
    return chosen.scatter_(1, order[:, :count], True)


@torch.no_grad()
def input_norms(target: Target, examples: Sequence[Example], layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Name -> (in,) L2 norm of what each input of the layer reads, over all tokens; padding is none.

    Raises:
        NotMeasured: a norm that is not finite.
    """
    sums: dict[str, Tensor] = {}
    for batch in by_length(examples, pad=target.encoder.pad, device=target.device):
        with _read(layers, batch.attention_mask.bool(), sums):
            target.model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise NotMeasured(f"what layer {name} reads is not finite")
    return {name: total.sqrt().float() for name, total in sums.items()}


@contextmanager
def _read(layers: dict[str, nn.Module], is_token: Tensor, sums: dict[str, Tensor]) -> Iterator[None]:
    """Inside, a forward pass adds the squares of what the layers read to the sums, float64."""

    def add(name: str, given: Tensor) -> None:
        squares = given.double().square() * is_token.unsqueeze(-1)
        total = squares.reshape(-1, squares.shape[-1]).sum(0)
        sums[name] = sums[name] + total if name in sums else total

    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: add(name, given[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
