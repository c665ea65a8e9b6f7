"""AWQ: scale the channels that carry much before rounding, cut off what costs more than it says, round to nearest.

In each block, on calibration text that goes through the untouched model (no error of earlier blocks is answered for):
    scales  for norm -> q k v, v -> o, norm -> gate up, up -> down: producer / t, consumers * t  (`channel_scales`)
    limits  for every linear but queries and keys: clamp(w, -c, c), c by row and group  (`clipping`)
then Q(w) as in rtn. t is searched from a^r, a = mean |x| of the consumers' inputs: one number r for a pair. v -> o only
where every query head has its own values, and up -> down only where nothing but a product lies between them.

The range of a group always holds 0 here. The authors' does not, and is the same wherever a group has weights of both
signs; where it has not, theirs cuts the largest weights off.

Source: Lin et al. 2023, arXiv:2306.00978; numbers as in the authors' code. duo_scaling: AutoAWQ.
Checked against: rtn where nothing is searched; the whole search written down for a Llama with cached inputs; logits of
every architecture behind the scales; a channel that matters, planted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from letheon.errors import BadInput, require
from letheon.lowbit.architectures import BlockLayout, ScalePair
from letheon.lowbit.online import read_online
from letheon.models import as_matrix
from letheon.numerics.grids import Grid, Quantized, quantize
from letheon.quantization.channel_scales import best_scale, candidate_scales, relative_sizes, scale_pair
from letheon.quantization.clipping import clip_limits, clipped
from letheon.quantization.streams import Batch, heard

_TOKENS = 512
"""Limits are searched on every (all tokens / this)-th token."""


@dataclass(frozen=True, kw_only=True)
class AWQ:
    """AWQ, with both searches."""

    bits: int = 4
    """2 to 8; 16 leaves the weights as they are, and scales nothing."""
    group: int | Literal["row"] = "row"
    """Weights that share a scale: a row, or a number of inputs that divides them all. The paper: 128; a row here as in
    the other quantizers, so that they compare at one size."""
    scheme: Literal["sym", "sym_clipped", "sym_centred", "asym"] = "asym"
    """Convention of step and codes: sym (restricted), sym_clipped, sym_centred (GPTQ files) or asym."""
    scale_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the file stores scales as; they are rounded to it before any weight is. AWQ files: float16."""
    ratios: int = 20
    """Candidates for r: 0, 1/ratios and so on below 1. 1 scales nothing."""
    clip_search: bool = True
    """Whether limits are searched; False rounds the scaled weights as they are."""
    duo_scaling: bool = False
    """Search a^r / s^(1-r), s the share of its group's range that a column takes. Not in the paper."""

    needs: ClassVar[tuple[str, ...]] = ("block",)

    def __post_init__(self) -> None:
        # Here, so that a bad setting is refused when it is typed, not at the first layer.
        require(
            self.grid.group != "tensor", "group 'tensor' is not what awq searches limits for. Use 'row', or a number"
        )
        require(self.ratios >= 1, f"ratios {self.ratios} is not a number of candidates. Use 20, or 1 to scale nothing")

    @property
    def grid(self) -> Grid:
        """The grid these settings describe."""
        return Grid(bits=self.bits, group=self.group, scheme=self.scheme, scale_dtype=self.scale_dtype)

    def quantize_layer(self, weight: Float[Tensor, "rows inputs"], statistics: object = None) -> Quantized:
        """One layer's weights, (out, in), as codes and scales: to nearest. `statistics` is not used.

        Raises:
            BadInput: a group that does not divide the inputs, or a weight that is NaN or infinite.
        """
        return quantize(weight, self.grid)

    @torch.no_grad()
    def prepare_block(
        self,
        model: Any,
        block: BlockLayout,
        before: Sequence[Batch],
        device: str,
        *,
        stored: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Put scales and limits into the weights, norms and biases of a block, which stands on `device`.

        Args:
            model: as it was up to this block and in it; earlier blocks are not looked at.
            block: where its parts are.
            before: what reaches the block in the untouched model.
            device: where the block is.
            stored: what the file holds norms and biases as; None: what the model does.
        Returns:
            Layer -> its scaled weight (out, in) before it was cut off, where it was: what is lost counts from there.
        Raises:
            BadInput: a group that does not divide the inputs of a layer, named.
        """
        if self.bits == 16:
            return {}
        self._check_group(model, block)
        magnitude, sample = _inputs(model, block, before, device)
        for pair in _pairs(model, block):
            first = pair.consumers[0]  # all hear the same
            sizes = relative_sizes(_stacked(model, pair), self.grid) if self.duo_scaling else None
            scales = candidate_scales(magnitude[first], self.ratios, sizes)
            found = best_scale(model, block, pair, before, scales, self.grid, device=device)
            factor = scale_pair(model, block, pair, found, stored=stored)
            for name in pair.consumers:
                sample[name] = (sample[name] / factor).to(sample[name].dtype)
        return self._clip(model, block, sample) if self.clip_search else {}

    def _clip(self, model: Any, block: BlockLayout, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        uncut = {}
        for name in block.linears:
            rows = _clipped_rows(block, name)
            if rows is None:
                continue
            module = model.get_submodule(name)
            weight = as_matrix(module, module.weight.detach())
            uncut[name] = weight.clone()
            some = weight[rows]
            weight[rows] = clipped(some, clip_limits(some, sample[name], self.grid))
        return uncut

    def _check_group(self, model: Any, block: BlockLayout) -> None:
        if self.group == "row":
            return
        inputs = {name: _matrix(model, name).shape[1] for name in block.linears}
        problems = [
            f"layer {name}: a group of {self.group} does not divide its {width} inputs. Use a divisor of {width}, or "
            "group row"
            for name, width in inputs.items()
            if width % self.group
        ]
        if problems:
            raise BadInput(problems)


def _pairs(model: Any, block: BlockLayout) -> list[ScalePair]:
    """Those whose channels reach the consumers as they were produced: a rotation that runs in front of down mixes."""
    is_mixed = block.index in read_online(model.config).down
    return [pair for pair in block.scale_pairs if not (is_mixed and pair.consumers == (block.down,))]


def _inputs(
    model: Any, block: BlockLayout, batches: Sequence[Batch], device: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of every linear: mean |x| of its inputs, and the inputs at some tokens."""
    tokens = sum(batch.hidden.shape[:-1].numel() for batch in batches)
    stride = max(1, tokens // _TOKENS)
    total: dict[str, Tensor] = {}
    some: dict[str, list[Tensor]] = {}
    seen = 0
    for batch in batches:
        found = heard(model, block, batch, [group[0] for group in block.groups], device=device)
        for name, inputs in found.items():
            size = inputs.abs().sum(dim=0, dtype=torch.float64)
            total[name] = total[name] + size if name in total else size
            some.setdefault(name, []).append(inputs[-seen % stride :: stride].clone())
        seen += batch.hidden.shape[:-1].numel()
    first = {name: group[0] for group in block.groups for name in group}
    samples = {name: torch.cat(parts) for name, parts in some.items()}
    return {name: total[first[name]] / tokens for name in first}, {name: samples[first[name]] for name in first}


def _clipped_rows(block: BlockLayout, name: str) -> Tensor | slice | None:
    """Rows whose weights may be cut off; None: none of them. A product of queries and keys bears no cut in either."""
    if name not in (block.query, block.key):
        return slice(None)
    return block.rows("value").reshape(-1) if name == block.value else None


def _stacked(model: Any, pair: ScalePair) -> Tensor:
    return torch.cat([_matrix(model, name) for name in pair.consumers])


def _matrix(model: Any, name: str) -> Tensor:
    module = model.get_submodule(name)
    return as_matrix(module, module.weight)
