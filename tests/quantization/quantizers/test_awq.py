"""AWQ: its search written down once more, what it is where it has nothing to search, and a channel that matters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon import methods
from letheon.errors import BadInput
from letheon.lowbit.activations import install
from letheon.lowbit.architectures import BlockLayout, block_layout, model_layout
from letheon.lowbit.online import read_online
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.models import as_matrix
from letheon.numerics.grids import dequantize, fake_quantize, quantize
from letheon.quantization.block_walk import Walk, Walked, walk
from letheon.quantization.pipeline import quantize as quantize_folder
from letheon.quantization.quantizers.awq import AWQ
from letheon.quantization.quantizers.rtn import RTN
from letheon.quantization.streams import first_batches, heard, through
from letheon.runs.progress import Progress
from tests.architectures.models import ARCHITECTURES, make_model, save_model_folder
from tests.lowbit.lively import lively, logits
from tests.toys import bits, write_lines

IDS = torch.randint(2, 768, (6, 20), generator=torch.Generator().manual_seed(0))


def prepared(model: Any, quantizer: AWQ, *, size: int = 4) -> dict[str, Tensor]:
    """Every block of the model after its turn, behind an untouched stream; the weights before they were cut off."""
    uncut: dict[str, Tensor] = {}
    batches = first_batches(model, model_layout(model), IDS, size=size, device="cpu")
    for block in block_layout(model):
        behind = [through(model, block, batch, device="cpu") for batch in batches]
        uncut |= quantizer.prepare_block(model, block, batches, "cpu")
        batches = behind
    return uncut


def weight_of(model: Any, name: str) -> Tensor:
    module = model.get_submodule(name)
    return as_matrix(module, module.weight.detach())


def every_bit(model: Any) -> dict[str, bytes]:
    return {name: bits(parameter) for name, parameter in model.named_parameters()}


def walked(model: Any, quantizer: Any, keep: Path) -> Walked:
    return walk(Walk(model, model_layout(model), quantizer, IDS, keep))


# --- the search, written down once more


def to_nearest(weight: Tensor, code_bits: int, group: int, *, holds_zero: bool = True) -> Tensor:
    """The range of a group holds 0, or goes from its smallest to its largest weight as in the authors' code.

    In float32: between limits of -c and c the zero point is half of a whole number, and the last digit decides.
    """
    some = weight.float().reshape(len(weight), -1, group)
    low, high = some.amin(dim=-1, keepdim=True), some.amax(dim=-1, keepdim=True)
    if holds_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    step = (high - low).clamp(min=1e-5) / (2**code_bits - 1)
    zero = (-low / step).round().clamp(0, 2**code_bits - 1)
    return (((some / step).round() + zero).clamp(0, 2**code_bits - 1) - zero).mul(step).reshape(weight.shape)


class SlowBlock:
    """A Llama's block: inputs of everything are kept once and divided as scales are found."""

    def __init__(self, model: Any, index: int, code_bits: int, group: int) -> None:
        self.block = model.model.layers[index]
        self.bits, self.group = code_bits, group
        self.given: dict[str, Tensor] = {}
        self.beside: dict[str, Any] = {}
        attention, mlp = self.block.self_attn, self.block.mlp
        self.parts = {"attention": attention, "mlp": mlp, "o": attention.o_proj, "down": mlp.down_proj}
        hooks = [
            part.register_forward_pre_hook(self._keep(name), with_kwargs=True) for name, part in self.parts.items()
        ]
        with torch.no_grad():
            model(input_ids=IDS, use_cache=False)
        for hook in hooks:
            hook.remove()

    def _keep(self, name: str) -> Any:
        def hook(_: Any, arguments: Any, named: Any) -> None:
            self.given[name] = (arguments or (named["hidden_states"],))[0]
            if name == "attention":
                self.beside = {key: value for key, value in named.items() if key != "hidden_states"}

        return hook

    def out(self, name: str) -> Tensor:
        found = self.parts[name](self.given[name], **(self.beside if name == "attention" else {}))
        return found[0] if isinstance(found, tuple) else found

    def scale(self, producer: Any, consumers: list[Any], inspected: str, ratios: int) -> None:
        magnitude = self.given[inspected].flatten(0, 1).abs().mean(dim=0).float()
        expected, originals = self.out(inspected), [consumer.weight.clone() for consumer in consumers]
        best: tuple[float, Tensor] | None = None
        for number in range(ratios):
            scale = (magnitude ** (number / ratios)).clamp(min=1e-4)
            scale = scale / (scale.max() * scale.min()).sqrt()
            for consumer, original in zip(consumers, originals, strict=True):
                consumer.weight.copy_(to_nearest(original * scale, self.bits, self.group) / scale)
            loss = float((self.out(inspected) - expected).square().mean())
            if best is None or loss < best[0]:
                best = loss, scale
        assert best is not None
        for consumer, original in zip(consumers, originals, strict=True):
            consumer.weight.copy_(original * best[1])
        producer.weight.copy_(producer.weight / (best[1] if producer.weight.ndim == 1 else best[1][:, None]))
        self.given[inspected] = self.given[inspected] / best[1]

    def clip(self, linear: Any, inputs: Tensor) -> None:
        heard = inputs.flatten(0, 1)
        heard = heard[:: max(1, len(heard) // 512)]
        for row in linear.weight:
            for begin in range(0, len(row), self.group):
                some, given = row[begin : begin + self.group].float(), heard[:, begin : begin + self.group]
                losses = []
                for trial in range(10):
                    limit = some.abs().max() * (1 - trial / 20)
                    cut = some.clamp(-limit, limit)
                    change = to_nearest(cut[None], self.bits, self.group)[0] - some
                    losses.append((float((given @ change.double()).square().mean()), trial, cut))
                row[begin : begin + self.group] = min(losses, key=lambda one: one[:2])[2]


@torch.no_grad()
def slowly(model: Any, code_bits: int, group: int, ratios: int, *, shares_values: bool) -> None:
    """Changes the model in place, last block first: each hears a model that is untouched in front of it."""
    for index in reversed(range(len(model.model.layers))):
        slow = SlowBlock(model, index, code_bits, group)
        block, attention, mlp = slow.block, slow.block.self_attn, slow.block.mlp
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        slow.scale(block.input_layernorm, readers, "attention", ratios)
        if not shares_values:
            slow.scale(attention.v_proj, [attention.o_proj], "o", ratios)
        slow.scale(block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], "mlp", ratios)
        slow.scale(mlp.up_proj, [mlp.down_proj], "down", ratios)
        slow.clip(attention.v_proj, slow.given["attention"])
        slow.clip(attention.o_proj, slow.given["o"])
        slow.clip(mlp.gate_proj, slow.given["mlp"])
        slow.clip(mlp.up_proj, slow.given["mlp"])
        slow.clip(mlp.down_proj, slow.given["down"])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {"bits": 3, "group": 16}),
        ("llama", {"bits": 4, "group": 8}),
        ("llama_grouped", {"bits": 3, "group": 16}),
    ],
)
def test_it_does_what_its_description_says(name: str, settings: dict[str, Any]) -> None:
    model, expected = lively(name, seed=1), lively(name, seed=1)
    slowly(expected, settings["bits"], settings["group"], 5, shares_values=name == "llama_grouped")
    prepared(model, AWQ(ratios=5, **settings))
    for (parameter, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-8, msg=parameter)


# --- where there is nothing to search


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_ratio_and_no_limits_are_rtn(name: str) -> None:
    model = lively(name).float()
    before = every_bit(model)
    quantizer = AWQ(bits=3, group=8, ratios=1, clip_search=False)
    assert prepared(model, quantizer) == {} and every_bit(model) == before
    for block in block_layout(model):
        for linear in block.linears:
            weight = weight_of(model, linear).contiguous()
            ours, rtn = quantizer.quantize_layer(weight), RTN(bits=3, group=8, scheme="asym").quantize_layer(weight)
            assert bits(ours.codes) == bits(rtn.codes) and bits(ours.scale) == bits(rtn.scale)
            assert bits(ours.zero) == bits(rtn.zero) and ours.grid == rtn.grid


def test_sixteen_bits_scale_and_cut_nothing() -> None:
    model = lively("llama").float()
    before = every_bit(model)
    assert prepared(model, AWQ(bits=16)) == {} and every_bit(model) == before
    weight = weight_of(model, block_layout(model)[0].query)
    assert bits(dequantize(AWQ(bits=16).quantize_layer(weight))) == bits(weight)


def test_the_range_that_holds_zero_is_the_authors_where_a_group_has_both_signs_and_better_where_it_has_not() -> None:
    weight = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    weight[:, ::8], weight[:, 1::8] = weight[:, ::8].abs(), -weight[:, 1::8].abs()
    ours, theirs = fake_quantize(weight, AWQ(group=8).grid), to_nearest(weight, 4, 8, holds_zero=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    weight = weight.abs() + 1
    ours, theirs = fake_quantize(weight, AWQ(group=8).grid), to_nearest(weight, 4, 8, holds_zero=False)
    assert float((ours - weight).abs().max()) < 0.2 < 0.9 < float((theirs - weight).abs().max())


# --- what stays


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scales_change_the_weights_and_not_the_function(name: str) -> None:
    model = lively(name, seed=2).float()
    before, untouched = logits(model, IDS), every_bit(model)
    assert prepared(model, AWQ(bits=3, group=8, clip_search=False)) == {}
    torch.testing.assert_close(logits(model, IDS), before, rtol=1e-5, atol=1e-5)
    changed = {parameter for parameter, one in every_bit(model).items() if one != untouched[parameter]}
    for block in block_layout(model):
        assert {f"{norm}.weight" for norm in block.readers} & changed
        assert {f"{linear}.weight" for linear in block.linears} & changed
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_only_queries_and_keys_are_never_cut(name: str) -> None:
    model = lively(name, seed=3).float()
    before = copy.deepcopy(model)
    uncut = prepared(model, AWQ(bits=3, group=8, ratios=1))
    for block in block_layout(model):
        for part in ("query", "key"):
            rows, linear = block.rows(part).reshape(-1), getattr(block, part)  # type: ignore[arg-type]
            assert torch.equal(weight_of(model, linear)[rows], weight_of(before, linear)[rows])
        for linear in {*block.linears} - ({block.query, block.key} - {block.value}):
            ours, original = weight_of(model, linear), weight_of(before, linear)
            assert bool((ours.abs() <= original.abs()).all()) and not torch.equal(ours, original)
            assert torch.equal(uncut.pop(linear), original)
            is_cut = ours != original
            grouped = ours.abs().reshape(len(ours), -1, 8)
            widest = grouped.amax(dim=-1, keepdim=True).expand_as(grouped).reshape(ours.shape)
            assert torch.equal(ours.abs()[is_cut], widest[is_cut])
    assert not uncut


def test_values_that_heads_share_are_not_scaled_for_the_output() -> None:
    model = lively("llama_grouped", seed=4)
    before = copy.deepcopy(model)
    prepared(model, AWQ(bits=3, group=8, clip_search=False))
    for block in block_layout(model):
        assert torch.equal(weight_of(model, block.output), weight_of(before, block.output))
        factor = weight_of(model, block.query)[0] / weight_of(before, block.query)[0]
        assert not torch.allclose(factor, torch.ones_like(factor))
        torch.testing.assert_close(weight_of(model, block.value), weight_of(before, block.value) * factor)


def test_channels_that_a_rotation_mixes_are_no_pair() -> None:
    model = make_model("llama")
    rotated = HadamardRotation(keys=False).rotate(model)
    with_rotation = install(model, online=rotated.online)
    before, original = logits(model, IDS), copy.deepcopy(model)
    assert read_online(model.config).down
    prepared(model, AWQ(bits=3, group=8, clip_search=False))
    torch.testing.assert_close(logits(model, IDS), before, rtol=1e-5, atol=1e-5)
    for block in block_layout(model):
        assert block.down is not None
        assert torch.equal(weight_of(model, block.down), weight_of(original, block.down))
    with_rotation.remove()


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_pieces_of_the_text_count_as_the_whole(name: str) -> None:
    whole, pieces = (lively(name, seed=5) for _ in range(2))
    prepared(whole, AWQ(bits=3, group=8), size=6)
    prepared(pieces, AWQ(bits=3, group=8), size=1)
    for ours, theirs in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


# --- what it is for


def block_loss(model: Any, quantizer: Any) -> float:
    """Mean squared change of the first block's outputs by what a quantizer makes of it."""
    block = block_layout(model)[0]
    batches = first_batches(model, model_layout(model), IDS, size=6, device="cpu")
    (before,) = (through(model, block, batch, device="cpu").hidden for batch in batches)
    if hasattr(quantizer, "prepare_block"):
        quantizer.prepare_block(model, block, batches, "cpu")
    with torch.no_grad():
        for linear in block.linears:
            weight_of(model, linear).copy_(dequantize(quantizer.quantize_layer(weight_of(model, linear).contiguous())))
    (after,) = (through(model, block, batch, device="cpu").hidden for batch in batches)
    return float((after - before).square().mean())


def salient(name: str, seed: int) -> Any:
    """A model that feeds two channels of every norm on thirty times the power, as trained ones do."""
    model = lively(name, seed=seed).float()
    with torch.no_grad():
        for block in block_layout(model):
            for norm in block.readers:
                model.get_submodule(norm).weight[[3, 17]] = 30.0
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_channel_that_carries_much_is_spared(name: str) -> None:
    for seed in range(2):
        rtn = block_loss(salient(name, seed), RTN(bits=3, scheme="asym"))
        scaled = block_loss(salient(name, seed), AWQ(bits=3, clip_search=False))
        duo = block_loss(salient(name, seed), AWQ(bits=3, clip_search=False, duo_scaling=True))
        both = block_loss(salient(name, seed), AWQ(bits=3))
        assert scaled < 0.7 * rtn and duo < 0.7 * rtn and both < 0.6 * rtn


def test_limits_help_where_no_channel_stands_out() -> None:
    plain = sum(block_loss(lively("llama", seed).float(), RTN(bits=2, scheme="asym")) for seed in range(3))
    cut = sum(block_loss(lively("llama", seed).float(), AWQ(bits=2, ratios=1)) for seed in range(3))
    assert cut < 0.9 * plain


def test_channels_that_are_silent_leave_finite_weights() -> None:
    model = lively("llama", seed=6).float()
    block = block_layout(model)[0]
    with torch.no_grad():
        model.get_submodule(block.attention_norm).weight[5] = 0
        weight_of(model, block.up)[7] = 0  # type: ignore[arg-type]
    before = logits(model, IDS)
    prepared(model, AWQ(bits=4, group=8, clip_search=False))
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    torch.testing.assert_close(logits(model, IDS), before, rtol=1e-5, atol=1e-5)


# --- in a walk


def hears(model: Any, block: BlockLayout, linear: str) -> Tensor:
    (batch,) = first_batches(model, model_layout(model), IDS, size=6, device="cpu")
    return heard(model, block, batch, [linear], device="cpu")[linear]


def test_a_walk_keeps_norms_and_counts_what_was_cut_off(tmp_path: Path) -> None:
    model, quantizer = salient("llama", 0), AWQ(bits=3, group=8)
    expected = salient("llama", 0)
    uncut = prepared(expected, quantizer)
    found = walked(model, quantizer, tmp_path)
    for block in block_layout(model):
        for linear in block.linears:
            wanted = quantize(weight_of(expected, linear).contiguous(), quantizer.grid)
            assert torch.equal(weight_of(model, linear), dequantize(wanted))
            full = uncut.get(linear, weight_of(expected, linear))
            lost = (full - dequantize(wanted)).square().sum() / full.square().sum()
            assert found.figures[linear]["weights"] == pytest.approx(float(lost), rel=1e-4)
        for norm in block.readers:
            assert torch.equal(model.get_submodule(norm).weight, expected.get_submodule(norm).weight)
    block = block_layout(model)[0]
    heard_by_down = hears(model, block, block.down)  # type: ignore[arg-type]
    change = uncut[block.down] - weight_of(model, block.down)  # type: ignore[index, arg-type]
    share = (heard_by_down @ change.T).square().sum() / (heard_by_down @ uncut[block.down].T).square().sum()  # type: ignore[index]
    assert found.figures[block.down]["outputs"] == pytest.approx(float(share), rel=1e-3)  # type: ignore[index]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_a_walk_that_was_killed_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    straight, resumed = (salient(name, 1) for _ in range(2))
    first = walked(straight, AWQ(bits=3), tmp_path)
    first.files[1].unlink()
    second = walked(resumed, AWQ(bits=3), tmp_path)
    assert every_bit(resumed) == every_bit(straight)
    assert (second.loss_before, second.loss_after) == (first.loss_before, first.loss_after)
    rtn = walked(salient(name, 1), RTN(bits=3, scheme="asym"), tmp_path / "rtn")
    assert sum(first.blocks.values()) < sum(rtn.blocks.values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_a_folder_has_the_scales_in_its_norms(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    original = salient(name, 1)
    text = write_lines(
        tmp_path / "text.jsonl", [{"text": f"the lamp of house {n} is green and old"} for n in range(40)]
    )
    folders = {}
    for method in ("awq", "rtn"):
        folders[method] = quantize_folder(
            save_model_folder(original, tmp_path / "model"),
            method={"name": method, "bits": 3, "scheme": "asym"},
            format="dense",
            calibration_data=text,
            sequences=8,
            sequence_length=32,
            out=tmp_path / method,
            progress=Progress(quiet=True),
        ).folder

    def apart(folder: Path) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        norm = block_layout(model)[0].attention_norm
        is_scaled = not torch.equal(model.get_submodule(norm).weight, original.get_submodule(norm).weight)
        assert is_scaled == (folder == folders["awq"])
        return float((logits(model, IDS) - logits(original, IDS)).square().mean())

    assert apart(folders["awq"]) < 0.8 * apart(folders["rtn"])


# --- refusals, and the card


def test_bad_settings_are_refused_when_typed() -> None:
    with pytest.raises(BadInput, match="a grid of 9 bits does not exist"):
        AWQ(bits=9)
    with pytest.raises(BadInput, match="ratios 0 is not a number of candidates"):
        AWQ(ratios=0)
    with pytest.raises(BadInput, match=r"group: 'tensor'"):
        methods.build("quantizer", {"name": "awq", "group": "tensor"})


@pytest.mark.parametrize("settings", [{}, {"duo_scaling": True}])
def test_a_group_that_does_not_divide_is_refused_with_its_layers(settings: dict[str, Any]) -> None:
    model = make_model("llama")
    before = every_bit(model)
    with pytest.raises(BadInput, match=r"layer model\.layers\.0\.mlp\.down_proj: a group of 32 .* its 48 inputs"):
        prepared(model, AWQ(group=32, **settings))
    assert every_bit(model) == before


def test_card_and_three_spellings() -> None:
    card = methods.card("quantizer", "awq")
    assert card.class_name == "AWQ" and AWQ.needs == ("block",)
    built = methods.build("quantizer", {"name": "awq", "group": "128", "clip_search": "false", "ratios": "10"})
    assert built == AWQ(group=128, clip_search=False, ratios=10)
