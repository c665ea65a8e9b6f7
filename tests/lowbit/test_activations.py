"""A forward pass with low-bit activations and cache: attention written out, decoding, gradients, and removal."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, MixtralConfig

from letheon.errors import BadInput
from letheon.lowbit.activations import ActivationGrids, grids_named, install, low_bit_activations
from letheon.lowbit.architectures import block_layout
from letheon.lowbit.online import OnlineRotations
from letheon.lowbit.rotating import site_rotation
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.models import as_matrix, decoder_linears
from letheon.numerics.grids import Grid
from letheon.numerics.hadamard import Hadamard
from letheon.numerics.token_grids import TokenGrid, round_tokens
from letheon.training.straight_through import straight_through
from tests.architectures.models import _BLOCKS, ARCHITECTURES, make_from, make_model
from tests.lowbit.lively import IDS, lively, logits
from tests.toys import bits

FOUR = ActivationGrids()
OFF = TokenGrid(bits=16)
HIGH = {name: TokenGrid(bits=8) for name in ("inputs", "keys", "values")}


def only(**grids: TokenGrid) -> ActivationGrids:
    return ActivationGrids(**{"inputs": OFF, "keys": OFF, "values": OFF, **grids})  # type: ignore[arg-type]


def keys_rotated(model: Any) -> OnlineRotations:
    blocks = block_layout(model)
    return OnlineRotations(
        keys={block.index: site_rotation("keys", block.head_dim, seed=block.index) for block in blocks}
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_hears_rounded_inputs_and_the_head_does_not(name: str) -> None:
    model = make_model(name)
    said: dict[str, Tensor] = {}
    grids = only(inputs=TokenGrid(bits=4, clip=0.9))
    plain: dict[str, Tensor] = {}
    names = {id(module): linear for linear, module in decoder_linears(model).items()}
    names[id(model.get_output_embeddings())] = "head"

    def before(module: Any, arguments: Any) -> None:
        plain[names[id(module)]] = arguments[0].detach()

    def after(module: Any, arguments: Any, _: Any) -> None:
        said[names[id(module)]] = arguments[0].detach()

    modules = [*decoder_linears(model).values(), model.get_output_embeddings()]
    hooks = [module.register_forward_pre_hook(before) for module in modules]  # before rounding
    with low_bit_activations(model, grids=grids):
        hooks += [module.register_forward_hook(after) for module in modules]
        logits(model)
    assert len(said) == len(plain) == len(modules)
    for linear, x in plain.items():
        expected = x if linear == "head" else round_tokens(x, grids.inputs)
        assert torch.equal(said[linear], expected), linear
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("is_rotated", [False, True])
def test_attention_is_that_of_rotated_queries_and_a_low_bit_cache(
    name: str, is_rotated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out where the model hands over q, k and v of full precision: (q R)(Q(k R))^T and Q(v)."""
    model, other = lively(name, seed=1), lively(name, seed=1)
    online = keys_rotated(model) if is_rotated else None
    grids = only(keys=TokenGrid(bits=4, clip=0.95), values=TokenGrid(bits=3))
    with low_bit_activations(model, grids=grids, online=online):
        found = logits(model)

    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
        rotation = Hadamard(size=1) if online is None else online.keys[module.layer_idx]
        if is_rotated:
            query, key = rotation.rotate(query), rotation.rotate(key)
        return plain(module, query, round_tokens(key, grids.keys), round_tokens(value, grids.values), *rest, **named)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", attend)
    torch.testing.assert_close(found, logits(other), rtol=1e-10, atol=1e-10)
    monkeypatch.undo()
    assert not torch.allclose(found, logits(other), atol=1e-3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoding_with_a_low_bit_cache_is_the_whole_pass(name: str) -> None:
    model = lively(name, seed=1)
    rotated = HadamardRotation().rotate(model)
    with low_bit_activations(model, grids=FOUR, online=rotated.online), torch.no_grad():
        whole = logits(model)
        cache = DynamicCache(config=model.config)
        pieces = [
            model(input_ids=IDS[:, start:end], past_key_values=cache).logits
            for start, end in ((0, 3), (3, 4), (4, 5), (5, 8))
        ]
        assert cache.get_seq_length() == IDS.shape[1]
        torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-9, atol=1e-9)
        kept = cache.layers[1].values
        assert bool(torch.isclose(round_tokens(kept, FOUR.values), kept, rtol=1e-12, atol=1e-12).all())
    assert not torch.allclose(whole, logits(model), atol=1e-3)


def test_generation_goes_through_the_low_bit_cache_and_so_does_a_sliding_window() -> None:
    model = make_model("mistral", seed=1)  # a window of 16 tokens
    prompt = IDS[:1, :4]
    with low_bit_activations(model, grids=ActivationGrids(**HIGH)), torch.no_grad():  # type: ignore[arg-type]
        said = model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
        whole = model(input_ids=said).logits
    assert said.shape == (1, 28)
    assert torch.equal(whole[0, 3:-1].argmax(-1), said[0, 4:])


@pytest.mark.parametrize("share", ["head", "token"])
def test_heads_have_a_step_each_or_one_together(share: Any) -> None:
    model = make_model("llama_grouped")
    grids = ActivationGrids(inputs=OFF, keys=OFF, values=FOUR.values, share=share)
    cache = DynamicCache(config=model.config)
    plain = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=IDS, past_key_values=plain)
        with low_bit_activations(model, grids=grids):
            model(input_ids=IDS, past_key_values=cache)
    before, after = plain.layers[0].values, cache.layers[0].values
    assert torch.equal(plain.layers[0].keys, cache.layers[0].keys)
    expected = torch.stack(
        [
            torch.stack([round_tokens(head, FOUR.values) for head in token])
            if share == "head"
            else round_tokens(token.reshape(-1), FOUR.values).view_as(token)
            for token in before.transpose(1, 2).reshape(-1, 2, 8)
        ]
    )
    assert torch.equal(after.transpose(1, 2).reshape(-1, 2, 8), expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sixteen_bits_are_the_model_itself_gradients_and_all(name: str) -> None:
    model = make_model(name).requires_grad_(True)
    off = ActivationGrids(inputs=OFF, down=OFF, keys=OFF, values=OFF)

    def run() -> list[bytes]:
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        found = [bits(loss), *(bits(parameter.grad) for parameter in model.parameters())]
        model.zero_grad()
        return found

    before = run()
    with low_bit_activations(model, grids=off, online=keys_rotated(model)):
        assert run() == before
    with low_bit_activations(model):
        assert run() == before


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "gpt_neox", "qwen2"])
def test_rotated_at_sixteen_bits_gradients_are_those_of_the_model(name: str) -> None:
    """dL/dW = (dL/d(W R)) R^T: what the rotated weight gets, turned back."""
    model, other = (lively(name, seed=1).requires_grad_(True) for _ in range(2))
    block = block_layout(model)[0]
    assert block.down is not None
    rotated = HadamardRotation(residual=False, keys=False, values=False).rotate(model)
    with low_bit_activations(model, online=rotated.online):
        model(input_ids=IDS, labels=IDS).loss.backward()
    other(input_ids=IDS, labels=IDS).loss.backward()
    found, expected = (
        as_matrix(one.get_submodule(block.down), one.get_submodule(block.down).weight.grad) for one in (model, other)
    )
    torch.testing.assert_close(rotated.online.down[0].restore(found), expected, rtol=1e-9, atol=1e-12)
    up = [as_matrix(one.get_submodule(block.up), one.get_submodule(block.up).weight.grad) for one in (model, other)]
    torch.testing.assert_close(*up, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama_grouped", "gpt2", "gpt_neox"])
def test_gradients_are_those_of_detached_residuals(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, inputs and cache at 4 bits, keys and down rotated: every gradient of the surrogate, by autograd alone."""
    model = lively(name, seed=1)
    rotated = HadamardRotation().rotate(model)
    model.requires_grad_(True)

    def gradients() -> list[Tensor]:
        with straight_through(model, Grid(bits=4)), low_bit_activations(model, grids=FOUR, online=rotated.online):
            model(input_ids=IDS, labels=IDS).loss.backward()
        found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        model.zero_grad()
        return found

    found = gradients()
    from letheon.lowbit import activations

    def surrogate(x: Tensor, grid: TokenGrid) -> Tensor:
        return x + (round_tokens(x.detach(), grid) - x).detach()

    monkeypatch.setattr(activations, "round_tokens", surrogate)
    expected = gradients()
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_afterwards_nothing_is_left_of_it() -> None:
    model = make_model("llama")
    before, said = [bits(parameter) for parameter in model.parameters()], bits(logits(model))
    with pytest.raises(ZeroDivisionError), low_bit_activations(model, grids=FOUR, online=keys_rotated(model)):
        assert bits(logits(model)) != said
        raise ZeroDivisionError
    assert bits(logits(model)) == said
    assert [bits(parameter) for parameter in model.parameters()] == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    installed = install(model, grids=FOUR)
    installed.remove()
    installed.remove()
    assert bits(logits(model)) == said


def test_the_last_linear_of_the_mlp_may_have_a_grid_of_its_own() -> None:
    model = make_model("llama")
    block = block_layout(model)[0]
    seen: dict[str, Tensor] = {}
    with low_bit_activations(model, grids=ActivationGrids(inputs=TokenGrid(bits=2), down=TokenGrid(bits=8))):
        for name in (block.down, block.up):
            assert name is not None
            model.get_submodule(name).register_forward_hook(lambda _, x, __, name=name: seen.update({name: x[0]}))
        logits(model)
    levels = {name: max(len(token.unique()) for token in x.reshape(-1, x.shape[-1])) for name, x in seen.items()}
    assert levels[block.up] <= 4 < levels[block.down]  # type: ignore[index]


def test_inputs_are_rounded_in_the_basis_they_are_rotated_to() -> None:
    model = make_model("llama")
    rotated = HadamardRotation(residual=False, values=False, keys=False).rotate(model)
    block = block_layout(model)[0]
    assert block.down is not None
    down = model.get_submodule(block.down)
    plain: list[Tensor] = []
    said: list[Tensor] = []
    down.register_forward_pre_hook(lambda _, x: plain.append(x[0]))
    with low_bit_activations(model, grids=FOUR, online=rotated.online):
        down.register_forward_hook(lambda _, x, __: said.append(x[0]))
        logits(model)
    assert torch.equal(said[0], round_tokens(rotated.online.down[0].rotate(plain[0]), FOUR.inputs))


def test_rotation_brings_back_what_an_outlier_costs() -> None:
    """Four channels of the stream 30 times as large, made up for in what reads them: the same model, and hard to round."""
    model = lively("llama", seed=1)
    with torch.no_grad():
        for block in block_layout(model):
            for norm in block.readers:
                model.get_submodule(norm).weight[:4] *= 30
            for reader in (name for readers in block.readers.values() for name in readers):
                model.get_submodule(reader).weight[:, :4] /= 30
    exact_logits = logits(model)

    def lost(online: OnlineRotations | None = None) -> float:
        with low_bit_activations(model, grids=FOUR, online=online):
            return float((logits(model) - exact_logits).square().mean())

    plain = lost()
    rotated = HadamardRotation().rotate(model)
    assert lost(rotated.online) < 0.5 * plain


@pytest.mark.parametrize(
    ("name", "expected"),
    [("w4a4kv4", (4, 4, 4)), ("w16a8kv2", (16, 8, 2)), ("w3a16kv16", (3, 16, 16))],
)
def test_a_pass_has_a_name(name: str, expected: tuple[int, ...]) -> None:
    weights, grids = grids_named(name)
    assert (weights, grids.inputs.bits, grids.keys.bits) == expected and grids.keys == grids.values


@pytest.mark.parametrize("name", ["w4", "w4a4", "w1a4kv4", "w4a4kv9", "int4", "W4A4KV4", ""])
def test_another_word_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"{name!r} is not a low-bit pass. Known: w4a4kv4 and the like")):
        grids_named(name)


def test_groups_that_do_not_fit_are_said_before_anything_changes() -> None:
    model = make_model("llama_grouped")
    grids = ActivationGrids(inputs=TokenGrid(group=32), keys=TokenGrid(group=3), values=TokenGrid(group=8))
    with pytest.raises(BadInput) as raised:
        install(model, grids=grids)
    assert "a token group of 32 does not divide the 48 channels of model.layers.0.mlp.down_proj" in str(raised.value)
    assert "a token group of 3 does not divide the 8 channels of keys. Use a divisor of 8" in str(raised.value)
    assert len(raised.value.problems) == 2
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_rounded_is_refused() -> None:
    mixture = make_from(MixtralConfig(**_BLOCKS, num_local_experts=4))
    with pytest.raises(BadInput, match=r"mixture's experts cannot be rounded yet. Leave activations at 16 bits"):
        install(mixture, grids=FOUR)
    model = make_model("llama")
    model.model.layers[1].self_attn.forward = lambda hidden_states: hidden_states
    with pytest.raises(BadInput, match=r"takes no cache, so its keys cannot be reached. Quantize with kv bits 16"):
        install(model, grids=FOUR)
    assert not any(module._forward_pre_hooks for module in model.modules())
