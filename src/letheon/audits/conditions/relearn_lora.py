"""Fine-tuned through a low-rank change, then merged, on half of what was to be forgotten; the other half is asked.

    y = x (W + s B A)^T + b        A: (rank, in), B: (out, rank), s = alpha / rank, beside every linear of the blocks
A is drawn from the seed, uniform within 1 / root(in); B is 0, so the attack begins at the file's own model. A and B
alone are trained, as `relearn` trains all weights. When T is asked the change is added to W; then W is put back to the
bit and the training goes on. Experts of a mixture are no linears, and keep their weights.

Source: LoRA, Hu et al. 2021, arXiv:2106.09685; as an attack, arXiv:2409.18025 (rank 128, alpha 16, 2e-4) and
arXiv:2510.07626 (rank 16, alpha 32).  Checked against: merged = beside, peft's own layers on the same draws, W bit by
bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from letheon.audits.attacker import Attacker, Target
from letheon.audits.learning import learn, learning_of
from letheon.errors import BadInput, NotMeasured, require
from letheon.models import as_matrix, decoder_linears


@dataclass(frozen=True, kw_only=True)
class RelearnLora:
    """Settings of the attacker."""

    rank: int = 16
    """Columns of B, >= 1."""
    alpha: float = 32.0
    """The change is alpha / rank times B A, > 0."""
    steps: tuple[int, ...] = (10, 40)
    """Steps after which T is asked, each > 0: a row of the matrix for each."""
    learning_rate: float = 2e-3
    """Of AdamW, constant, > 0. Published attacks on models of 7 to 8 billion use 2e-4; a low-rank change takes several
    times the rate of all weights."""
    batch_size: int = 16
    """Records a step."""
    clip: float | None = 1.0
    """Largest global gradient norm, of A and B alone; null: none."""
    seed: int = 0
    """Of A, and order of the records."""

    along: ClassVar[str] = "steps"
    folds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _ = learning_of("relearn_lora", self)  # its rules
        require(self.rank >= 1, f"relearn_lora needs rank >= 1, got {self.rank}")
        require(
            math.isfinite(self.alpha) and self.alpha > 0, f"relearn_lora needs a finite alpha > 0, got {self.alpha}"
        )

    @property
    def label(self) -> str:
        """The row's name for readers."""
        return f"relearned by LoRA of rank {self.rank}, {'/'.join(map(str, sorted(self.steps)))} steps"

    @property
    def provenance(self) -> str:
        """One line for the report."""
        after = ", ".join(map(str, sorted(self.steps)))
        return (
            f"a low-rank change (rank {self.rank}, alpha {self.alpha:g}) trained for {after} steps (AdamW, "
            f"{self.learning_rate:g}, batch {self.batch_size}) on one half of the people to be forgotten and merged, "
            "asked about the other; both ways round"
        )

    def walk(self, target: Target, attacker: Attacker, then: Callable[[int], None]) -> None:
        """Train A and B on what the attacker learns, and call `then(k)` on the merged model after each of the steps.

        Raises:
            NotMeasured: nothing to learn, no linears in the model's blocks, or a loss that is NaN.
        """
        learned = attacker.learned
        try:
            layers = decoder_linears(target.model)
        except BadInput as error:
            raise NotMeasured(str(error)) from error
        changes = self.changes(layers)
        moving = {f"{name}.{part}": one for name, both in changes.items() for part, one in zip("AB", both, strict=True)}
        with ExitStack() as beside:
            for name, layer in layers.items():
                beside.callback(_run_beside(layer, *changes[name], self.scale).remove)

            def merged_then(step: int) -> None:
                if not any(bool(up.detach().any()) for _, up in changes.values()):
                    raise NotMeasured("the attack has moved no low-rank change")
                with merged(layers, changes, self.scale):
                    then(step)

            learn(target, learned, merged_then, settings=learning_of("relearn_lora", self), moving=moving)

    @property
    def scale(self) -> float:
        """s."""
        return self.alpha / self.rank

    def changes(self, layers: dict[str, nn.Module]) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Name -> A and B as they are before the first step. The same draws on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        found: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, layer in layers.items():
            weight = _matrix(layer)
            outputs, inputs = weight.shape
            drawn = (torch.rand(self.rank, inputs, generator=generator) * 2 - 1) / math.sqrt(inputs)
            found[name] = nn.Parameter(drawn.to(weight)), nn.Parameter(weight.new_zeros(outputs, self.rank))
        return found


def _matrix(layer: Any) -> Tensor:
    """(out, in), a view without a gradient."""
    return as_matrix(layer, layer.weight.detach())


def _run_beside(layer: nn.Module, down: Tensor, up: Tensor, scale: float) -> Any:
    """A hook that adds s (x A^T) B^T to what the layer says, until its change is merged."""

    def add(module: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if getattr(module, _MERGED, False) else output + scale * (given[0] @ down.T @ up.T)

    return layer.register_forward_hook(add)


_MERGED = "_has_merged_change"


@contextmanager
def merged(
    layers: dict[str, nn.Module], changes: dict[str, tuple[nn.Parameter, nn.Parameter]], scale: float
) -> Iterator[None]:
    """Inside, W holds the change and no hook adds it; afterwards W is what it was to the bit."""
    before = {name: _matrix(layer).clone() for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            down, up = changes[name]
            _matrix(layer).add_(up.detach() @ down.detach(), alpha=scale)
            setattr(layer, _MERGED, True)
        yield
    finally:
        for name, layer in layers.items():
            _matrix(layer).copy_(before[name])
            layer.__dict__.pop(_MERGED, None)
