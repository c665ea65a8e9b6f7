"""The layout of every architecture, told by running it: what a norm says is what its readers hear."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig

from letheon.errors import BadInput
from letheon.lowbit.architectures import KNOWN, block_layout, gain, model_layout, set_gain
from letheon.models import QUANTIZABLE, as_matrix, decoder_linears
from tests.architectures.models import _BLOCKS, ARCHITECTURES, LINEARS_PER_BLOCK, make_from, make_model
from tests.lowbit.lively import IDS, lively, logits


def seen(model: Any, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each module is given, and what it gives."""
    given: dict[str, Tensor] = {}
    said: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            given[name], said[name] = inputs[0], output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        model(input_ids=IDS)
    for hook in hooks:
        hook.remove()
    return given, said


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_has_one_place_in_the_order_in_which_they_run(name: str) -> None:
    model = make_model(name)
    layout = block_layout(model)
    linears = [linear for block in layout for linear in block.linears]
    assert sorted(linears) == sorted(decoder_linears(model))
    assert len(linears) == len(set(linears)) == 2 * LINEARS_PER_BLOCK[name]
    given, _ = seen(model, linears)
    assert list(given) == linears


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_readers_hear_their_norm_and_a_group_one_input(name: str) -> None:
    model = lively(name)
    for block in block_layout(model):
        given, said = seen(model, [*block.readers, *block.linears])
        for norm, readers in block.readers.items():
            for reader in readers:
                assert torch.equal(given[reader], said[norm]), reader
        for group in block.groups:
            assert all(torch.equal(given[linear], given[group[0]]) for linear in group)
        distinct = [given[group[0]] for group in block.groups]
        assert not any(
            one.shape == other.shape and torch.equal(one, other)
            for place, one in enumerate(distinct)
            for other in distinct[:place]
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_head_reads_the_final_norm_and_tied_is_tied(name: str) -> None:
    model = make_model(name)
    layout = model_layout(model)
    given, said = seen(model, [layout.final_norm, layout.head, layout.embedding])
    assert torch.equal(given[layout.head], said[layout.final_norm])
    head, embedding = (model.get_submodule(part).weight for part in (layout.head, layout.embedding))
    assert layout.is_tied == (head.data_ptr() == embedding.data_ptr())
    first = layout.blocks[0].attention_norm
    given, _ = seen(model, [first])
    positions = 0 if layout.positions is None else model.get_submodule(layout.positions)(torch.arange(8))
    torch.testing.assert_close(given[first], said[layout.embedding] + positions, rtol=0, atol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_of_a_part_are_the_heads_of_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is asked what it was given; the values have no rotary embedding in their way."""
    model = lively(name)
    model.config._attn_implementation = "caught"
    caught: dict[int, dict[str, Tensor]] = {}

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        caught[module.layer_idx] = {"query": query, "key": key, "value": value}
        return torch.zeros_like(query).transpose(1, 2), None

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "caught", attend)
    for block in block_layout(model):
        linears = {"query": block.query, "key": block.key, "value": block.value}
        given, _ = seen(model, list(set(linears.values())))
        for part in ("query", "key", "value"):
            linear = model.get_submodule(linears[part])
            rows = block.rows(part)  # type: ignore[arg-type]
            weight = as_matrix(linear, linear.weight)[rows]  # (heads, channels, in)
            said = torch.einsum("bti,hci->bhtc", given[linears[part]], weight)
            if linear.bias is not None:
                said = said + linear.bias[rows][:, None]
            expected = caught[block.index][part]
            turned = 0 if part == "value" else block.rotary_dim
            torch.testing.assert_close(said[..., turned:], expected[..., turned:], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(said[..., 0, :], expected[..., 0, :], rtol=1e-5, atol=1e-6)
            if turned:
                assert not torch.allclose(said[..., 1:, :turned], expected[..., 1:, :turned], atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pair_can_be_scaled_without_changing_the_function(name: str) -> None:
    model = lively(name, seed=4)
    with torch.no_grad():
        before = logits(model)
        for block in block_layout(model):
            for number, pair in enumerate(block.scale_pairs):
                producer = model.get_submodule(pair.producer)
                consumers = [model.get_submodule(consumer) for consumer in pair.consumers]
                width = as_matrix(consumers[0], consumers[0].weight).shape[1]
                scale = torch.rand(width, generator=torch.Generator().manual_seed(number), dtype=torch.float64) + 0.5
                if pair.producer in block.readers:
                    set_gain(producer, block.norm_kind, gain(producer, block.norm_kind) / scale)
                    rows = torch.arange(width)
                else:
                    rows = torch.arange(width) if pair.part is None else block.rows(pair.part).reshape(-1)
                    as_matrix(producer, producer.weight)[rows] /= scale[:, None]
                if getattr(producer, "bias", None) is not None:
                    producer.bias[rows] /= scale
                for consumer in consumers:
                    as_matrix(consumer, consumer.weight).mul_(scale)
    torch.testing.assert_close(logits(model), before, rtol=1e-11, atol=1e-11)


def test_values_shared_by_heads_are_no_pair_and_an_activation_lies_between_up_and_down() -> None:
    def producers(name: str) -> list[str]:
        block = block_layout(make_model(name))[1]
        return [pair.producer.removeprefix(f"{block.name}.") for pair in block.scale_pairs]

    assert producers("llama") == ["input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"]
    assert producers("llama_grouped") == ["input_layernorm", "post_attention_layernorm", "mlp.up_proj"]
    assert producers("gpt2") == ["ln_1", "attn.c_attn", "ln_2"]


def test_heads_and_rotary_parts() -> None:
    def numbers(name: str) -> tuple[int, int, int, int]:
        block = block_layout(make_model(name))[0]
        return block.heads, block.key_value_heads, block.head_dim, block.rotary_dim

    assert numbers("llama_grouped") == (4, 2, 8, 8)
    assert numbers("gemma") == (4, 1, 8, 8)
    assert numbers("gpt2") == (4, 4, 8, 0)
    assert numbers("gpt_neox") == (4, 4, 8, 2)


def test_every_quantizable_architecture_has_a_layout() -> None:
    assert set(QUANTIZABLE) <= set(KNOWN)


def test_a_mixture_has_attention_and_experts() -> None:
    model = make_from(MixtralConfig(**_BLOCKS, num_local_experts=4))
    block = block_layout(model)[1]
    assert block.linears == (block.query, block.key, block.value, block.output)
    assert block.experts == "model.layers.1.mlp.experts" and block.up is None


def test_a_layout_needs_no_weights() -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(ARCHITECTURES["gpt_neox"]())
    assert model_layout(model) == model_layout(make_model("gpt_neox"))


def test_what_is_not_known_is_refused() -> None:
    model = make_model("llama")
    model.config.model_type = "mamba"
    with pytest.raises(BadInput, match=re.escape("the architecture 'mamba' has no known layout. Known: llama, qwen2")):
        model_layout(model)
    model = make_model("llama")
    model.model.layers[1].mlp.extra = torch.nn.Linear(4, 4)
    with pytest.raises(BadInput, match=re.escape("(model.layers.1.mlp.extra is not a part of it)")):
        model_layout(model)
    model = make_model("gpt2")
    model.config.model_type = "gpt_neox"
    with pytest.raises(BadInput, match=re.escape("(no gpt_neox.embed_in)")):
        model_layout(model)
    model = make_model("llama")
    model.model.layers[0].mlp.up_proj.lora_A = torch.nn.ModuleDict()
    with pytest.raises(BadInput, match=r"low-rank layers \(LoRA\).*merge_and_unload"):
        model_layout(model)
