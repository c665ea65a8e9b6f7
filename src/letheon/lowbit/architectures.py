"""What is known of an architecture's decoder: which linears read which norm, where the heads lie, what may be scaled.

A block adds to the residual stream h, (batch, time, width):
    h <- h + o(attention(q(n1(h)), k(n1(h)), v(n1(h))))        h <- h + down(act(gate(n2(h))) * up(n2(h)))
or act(up(n2(h))) without a gate. In a parallel block (GPT-NeoX) n2 reads the h that n1 has read. Everything is told
by the names of modules, so that a layout of a model on the meta device holds for the loaded one.

Source: the architectures' code in transformers.
Checked against: every linear of every architecture is in one place; what each norm says is what its readers hear; the
rows of a fused layer, by the heads of attention as it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from letheon.errors import BadInput
from letheon.lowbit.matrices import ExpertLayers, expert_layers
from letheon.models import decoder_linears

Part = Literal["query", "key", "value"]
NormKind = Literal["rms", "rms_plus_one", "layer"]
"""rms: w x/rms(x); rms_plus_one: (1 + w) x/rms(x) (Gemma); layer: w (x - mean)/std + b."""


@dataclass(frozen=True, kw_only=True)
class ScalePair:
    """Channels that can be divided in one layer and multiplied in the next without changing the function (AWQ)."""

    producer: str
    """A norm or a linear."""
    part: Part | None = None
    """Which rows of a fused producer; None: all of its outputs, in the order of the consumers' inputs."""
    consumers: tuple[str, ...]
    """Linears whose input columns are the producer's outputs."""
    inspected: str
    """The module whose output a search looks at: attention, the MLP, or the consumer itself."""


@dataclass(frozen=True, kw_only=True)
class BlockLayout:
    """One block of the decoder. Names are full names of modules, as `model.get_submodule` takes them."""

    index: int
    name: str
    attention: str
    mlp: str
    attention_norm: str
    mlp_norm: str
    norm_kind: NormKind
    query: str
    key: str
    value: str
    """The same name three times where one linear makes all three; see `fused`."""
    output: str
    gate: str | None
    """None: the MLP has no gate, and its activation stands between `up` and `down`."""
    up: str | None
    down: str | None
    """None, both: the MLP is `experts`."""
    experts: str | None = None
    """A mixture's experts, which hold three-axis weights and no linears."""
    expert_layers: tuple[ExpertLayers, ...] = ()
    """What is rounded of these, expert by expert; they hear the tokens that are routed to them."""
    fused: Literal["stacked", "interleaved"] | None = None
    """Rows of a fused linear: all queries, all keys, all values (GPT-2); or q, k, v of each head (GPT-NeoX)."""
    heads: int
    key_value_heads: int
    head_dim: int
    rotary_dim: int
    """Leading channels of a head that a rotary embedding turns; 0 without one."""
    is_parallel: bool = False

    @property
    def readers(self) -> dict[str, tuple[str, ...]]:
        """Norm -> the linears that read it."""
        return {
            self.attention_norm: _once(self.query, self.key, self.value),
            self.mlp_norm: _once(self.gate, self.up),
        }

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Linears that share one input, in the order in which they run."""
        found = (*self.readers.values(), (self.output,), _once(self.down))
        attention, mlp, output, down = found
        return tuple(group for group in (attention, output, mlp, down) if group)

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear of the block, in the order in which they run."""
        return tuple(name for group in self.groups for name in group)

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer that is rounded: the linears, and the layers of the experts as files name them."""
        return self.linears + tuple(name for expert in self.expert_layers for name in expert.names)

    @property
    def scale_pairs(self) -> tuple[ScalePair, ...]:
        """Producer -> consumers, in the order in which they run; v -> o only where every query head has its own v."""
        found = [
            ScalePair(
                producer=self.attention_norm, consumers=self.readers[self.attention_norm], inspected=self.attention
            )
        ]
        if self.heads == self.key_value_heads:
            part: Part | None = "value" if self.fused else None
            found.append(ScalePair(producer=self.value, part=part, consumers=(self.output,), inspected=self.output))
        if self.up is not None:
            found.append(ScalePair(producer=self.mlp_norm, consumers=self.readers[self.mlp_norm], inspected=self.mlp))
        if self.gate is not None and self.up is not None and self.down is not None:
            found.append(ScalePair(producer=self.up, consumers=(self.down,), inspected=self.down))
        return tuple(found)

    def rows(self, part: Part) -> Int[Tensor, "heads channels"]:
        """Which rows of the matrix (out, in) of `query`, `key` or `value` are which channel of which head."""
        heads = self.heads if part == "query" else self.key_value_heads
        rows = torch.arange(heads * self.head_dim).view(heads, self.head_dim)
        place = ("query", "key", "value").index(part)
        if self.fused == "stacked":
            return rows + place * heads * self.head_dim
        if self.fused == "interleaved":
            return rows + (2 * torch.arange(heads)[:, None] + place) * self.head_dim
        return rows


@dataclass(frozen=True, kw_only=True)
class ModelLayout:
    """The whole decoder, around its blocks."""

    model_type: str
    width: int
    embedding: str
    positions: str | None
    """A table of learned positions that is added to the embedding (GPT-2)."""
    final_norm: str
    norm_kind: NormKind
    head: str
    is_tied: bool
    """Whether the head's weight is the embedding's."""
    blocks: tuple[BlockLayout, ...]


@dataclass(frozen=True, kw_only=True)
class _Family:
    """Names of an architecture; inside a block they are relative to it."""

    base: str
    blocks: str
    embedding: str
    final_norm: str
    head: str = "lm_head"
    positions: str | None = None
    norms: tuple[str, str]
    norm_kind: NormKind = "rms"
    attention: str
    mlp: str
    qkv: tuple[str, str, str]
    output: str
    gate: str | None = None
    up: str | None = None
    down: str | None = None
    experts: str | None = None
    fused: Literal["stacked", "interleaved"] | None = None


def _llama(norm_kind: NormKind = "rms", *, experts: str | None = None, mlp: str = "mlp") -> _Family:
    return _Family(
        base="model", blocks="layers", embedding="embed_tokens", final_norm="norm",
        norms=("input_layernorm", "post_attention_layernorm"), norm_kind=norm_kind, attention="self_attn", mlp=mlp,
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), output="self_attn.o_proj",
        gate=None if experts else "mlp.gate_proj", up=None if experts else "mlp.up_proj",
        down=None if experts else "mlp.down_proj", experts=experts,
    )  # fmt: skip


_FAMILIES: Mapping[str, _Family] = {
    "llama": _llama(),
    "qwen2": _llama(),
    "mistral": _llama(),
    "gemma": _llama("rms_plus_one"),
    "mixtral": _llama(experts="mlp.experts"),
    "gpt2": _Family(
        base="transformer", blocks="h", embedding="wte", positions="wpe", final_norm="ln_f",
        norms=("ln_1", "ln_2"), norm_kind="layer", attention="attn", mlp="mlp",
        qkv=("attn.c_attn",) * 3, fused="stacked", output="attn.c_proj", up="mlp.c_fc", down="mlp.c_proj",
    ),
    "gpt_neox": _Family(
        base="gpt_neox", blocks="layers", embedding="embed_in", final_norm="final_layer_norm",
        norms=("input_layernorm", "post_attention_layernorm"), norm_kind="layer", attention="attention", mlp="mlp",
        qkv=("attention.query_key_value",) * 3, fused="interleaved", output="attention.dense",
        up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h",
    ),
}  # fmt: skip
"""config.model_type -> its names."""

KNOWN = tuple(_FAMILIES)
"""Architectures whose layout is known."""


def model_layout(model: Any) -> ModelLayout:
    """Where everything is in a model of a known architecture.

    Raises:
        BadInput: another architecture, low-rank layers beside the weights, or a part that is not where it belongs.
    """
    config = model.config
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise BadInput(
            f"the architecture {config.model_type!r} has no known layout. Known: {', '.join(KNOWN)}. "
            "Quantize with rtn, which needs none"
        )
    blocks = tuple(_block(config, family, index) for index in range(config.num_hidden_layers))
    found = ModelLayout(
        model_type=config.model_type,
        width=config.hidden_size,
        embedding=f"{family.base}.{family.embedding}",
        positions=f"{family.base}.{family.positions}" if family.positions else None,
        final_norm=f"{family.base}.{family.final_norm}",
        norm_kind=family.norm_kind,
        head=family.head,
        is_tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        blocks=blocks,
    )
    _check(model, found)
    return found


def block_layout(model: Any) -> list[BlockLayout]:
    """The blocks, first to last. Raises what `model_layout` raises."""
    return list(model_layout(model).blocks)


def gain(norm: nn.Module, kind: NormKind) -> Float[Tensor, " width"]:
    """What a norm multiplies its channels with, in its weight's dtype."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    return weight + 1 if kind == "rms_plus_one" else weight


@torch.no_grad()
def set_gain(norm: nn.Module, kind: NormKind, value: Float[Tensor, " width"]) -> None:
    """Let a norm multiply its channels with `value`; its bias stays."""
    weight: Tensor = norm.weight  # type: ignore[assignment]
    weight.copy_(value - 1 if kind == "rms_plus_one" else value)


def _block(config: Any, family: _Family, index: int) -> BlockLayout:
    name = f"{family.base}.{family.blocks}.{index}"

    def full(part: str | None) -> str | None:
        return None if part is None else f"{name}.{part}"

    query, key, value = (f"{name}.{part}" for part in family.qkv)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return BlockLayout(
        index=index,
        name=name,
        attention=f"{name}.{family.attention}",
        mlp=f"{name}.{family.mlp}",
        attention_norm=f"{name}.{family.norms[0]}",
        mlp_norm=f"{name}.{family.norms[1]}",
        norm_kind=family.norm_kind,
        query=query,
        key=key,
        value=value,
        output=f"{name}.{family.output}",
        gate=full(family.gate),
        up=full(family.up),
        down=full(family.down),
        experts=(experts := full(family.experts)),
        expert_layers=() if experts is None else expert_layers(experts, config.num_local_experts),
        fused=family.fused,
        heads=config.num_attention_heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim,
        rotary_dim=_rotary_dim(config, head_dim),
        is_parallel=bool(getattr(config, "use_parallel_residual", False)),
    )


def _rotary_dim(config: Any, head_dim: int) -> int:
    rotary = getattr(config, "rope_parameters", None)
    if not rotary:
        return 0
    share = rotary.get("partial_rotary_factor", 1.0) if config.model_type == "gpt_neox" else 1.0
    return int(head_dim * share)


def _check(model: Any, layout: ModelLayout) -> None:
    """Every module is there, and no linear of the decoder is left out: one that is would be passed over in silence."""
    modules = dict(model.named_modules())
    if any(hasattr(module, "lora_A") for module in modules.values()):
        raise BadInput(
            "the model has low-rank layers (LoRA) beside its weights, so its linears are not where they belong. "
            "Merge them first (peft: merge_and_unload), or take the base model alone"
        )
    wanted = [layout.embedding, layout.positions, layout.final_norm, layout.head]
    for block in layout.blocks:
        wanted += [block.attention, block.mlp, *block.readers, *block.linears, block.experts]
    absent = [name for name in wanted if name is not None and name not in modules]
    listed = {name for block in layout.blocks for name in block.linears}
    strange = [name for name in decoder_linears(model) if name not in listed]
    if absent or strange:
        problem = f"no {absent[0]}" if absent else f"{strange[0]} is not a part of it"
        raise BadInput(
            f"the model says it is a {layout.model_type!r} but is built otherwise ({problem}). "
            "Give a causal language model as transformers makes it"
        )


def _once(*names: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name is not None))
