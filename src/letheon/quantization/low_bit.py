"""A model whose layers have been rounded, as a format writes it: never whole in memory.

Source: this project.  Checked against: each format's own test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from letheon.lowbit.activations import ActivationGrids
from letheon.models import ModelFolder
from letheon.numerics.grids import Quantized
from letheon.numerics.hadamard import Hadamard


@dataclass(frozen=True, kw_only=True)
class LowBitModel:
    """What there is to write. Both mappings may read a tensor from disk whenever it is asked for."""

    original: ModelFolder
    """The full-precision folder: its configuration, tokenizer and generation config are kept."""
    layers: Mapping[str, Quantized]
    """Name of a linear layer, without ".weight", as the files have it -> its rounded matrix (out, in)."""
    others: Mapping[str, Tensor]
    """Name in the files -> every other tensor (embeddings, norms, biases, head), as it is to be stored."""
    transposed: frozenset[str] = frozenset()
    """Layers whose weight is stored as (in, out): GPT-2's."""
    grids: ActivationGrids | None = None
    """Of linears' inputs, keys and values while it runs; None: they are left alone."""
    down: Mapping[str, Hadamard] = field(default_factory=dict)
    """Linear -> R4, the rotation of its inputs while it runs; its weight is rotated to match."""
    experts: frozenset[str] = frozenset()
    """Layers of a mixture's experts."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Changes to config.json, such as untied embeddings after a rotation."""
    card: str = ""
    """Text of the README.md."""

    def dense(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name in the files, rounded layers as the values their codes stand for."""
        from letheon.numerics.grids import dequantize

        for name, layer in self.layers.items():
            weight = dequantize(layer)
            yield f"{name}.weight", weight.T.contiguous() if name in self.transposed else weight
        yield from self.others.items()
