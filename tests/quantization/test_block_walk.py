"""The walk against one by hand that runs the whole model for every layer; and a walk that is killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from letheon.errors import BadInput, CannotFinish
from letheon.lowbit.architectures import model_layout
from letheon.methods import build
from letheon.models import as_matrix
from letheon.numerics.grids import Quantized, dequantize, quantize
from letheon.quantization import block_walk
from letheon.quantization.block_walk import Walk, Walked, put_in, walk
from letheon.quantization.factors import NotPositiveDefinite
from letheon.quantization.kept_blocks import KeptLayers, kept_block
from letheon.quantization.statistics import Statistics
from letheon.quantization.streams import first_batches, heard, mean_loss, through
from tests.architectures.models import ARCHITECTURES, make_model
from tests.toys import bits

IDS = torch.randint(2, 768, (6, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, the last of them smaller."""
    monkeypatch.setattr(block_walk, "TOKENS_AT_ONCE", 4 * IDS.shape[1])


def walked(name: str, method: Any, keep: Path, **settings: Any) -> tuple[Any, Walked]:
    model = make_model(name)
    return model, walk(Walk(model, model_layout(model), build("quantizer", method), IDS, keep, **settings))


def inputs_of(model: Any, names: list[str]) -> dict[str, Tensor]:
    """What linears hear in a plain forward pass of the whole model over everything at once."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, given: found.__setitem__(name, given[0].reshape(-1, given[0].shape[-1]).double())

    hooks = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


# --- streams


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_one_by_one_are_the_whole_model(name: str) -> None:
    model = make_model(name)
    layout = model_layout(model)
    names = [group[0] for block in layout.blocks for group in block.groups]
    wanted = inputs_of(model, names)
    batches = first_batches(model, layout, IDS, size=4, device="cpu")
    assert [len(batch.hidden) for batch in batches] == [4, 2]
    for block in layout.blocks:
        first = [group[0] for group in block.groups]
        for one in first:
            alone = torch.cat([heard(model, block, batch, [one], device="cpu")[one] for batch in batches])
            torch.testing.assert_close(alone.double(), wanted[one], rtol=1e-4, atol=1e-5)
        together = heard(model, block, batches[0], first, device="cpu")
        assert list(together) == first or set(together) == set(first)
        batches = [through(model, block, batch, device="cpu") for batch in batches]
    with torch.no_grad():
        whole = model(input_ids=IDS, labels=IDS, use_cache=False)
    assert mean_loss(model, layout, batches, IDS, device="cpu") == pytest.approx(float(whole.loss), rel=1e-5)


def test_no_hook_stays_behind() -> None:
    model = make_model("llama")
    layout = model_layout(model)
    (batch,) = first_batches(model, layout, IDS, size=10, device="cpu")
    heard(model, layout.blocks[0], batch, [layout.blocks[0].query], device="cpu")
    assert not any(module._forward_pre_hooks for module in model.modules())


# --- the walk by hand


def by_hand(name: str, method: dict[str, Any]) -> dict[str, Quantized]:
    """Group after group, each with moments from passes of the whole models, old and new, over all text at once."""
    quantizer = build("quantizer", method)
    model, untouched = make_model(name), make_model(name)
    found: dict[str, Quantized] = {}
    for block in model_layout(model).blocks:
        for group in block.groups:
            now, before = (inputs_of(one, [group[0]])[group[0]] for one in (model, untouched))
            statistics = Statistics(
                gram=(now.T @ now / len(now)).float(),
                drift=((before - now).T @ now / len(now)).float() if "drift" in quantizer.needs else None,
                tokens=len(now),
            )
            for layer in group:
                module = model.get_submodule(layer)
                weight = as_matrix(module, module.weight.detach()).contiguous()
                found[layer] = quantizer.quantize_layer(weight, statistics)
            for layer in group:
                module = model.get_submodule(layer)
                with torch.no_grad():
                    module.weight.copy_(as_matrix(module, dequantize(found[layer])))
    return found


@pytest.mark.parametrize("method", ["gptq", "gptaq", "refit"])
@pytest.mark.parametrize("name", ["llama_grouped", "gpt2", "gpt_neox", "gemma"])
def test_each_group_hears_what_those_before_it_have_become(name: str, method: str, tmp_path: Path) -> None:
    """Sums in another order move a weight that lies between two values, so nearly all codes are equal, not all."""
    settings = {"name": method, "bits": 4}
    _, found = walked(name, settings, tmp_path)
    wanted, layers = by_hand(name, settings), KeptLayers(found.files)
    assert set(layers) == set(wanted)
    for layer, one in wanted.items():
        assert float((layers[layer].codes == one.codes).float().mean()) > 0.97, layer


def test_an_order_that_is_not_the_models_is_seen_by_the_comparison(tmp_path: Path) -> None:
    """The comparison above can fail: moments of the untouched model alone give other codes."""
    _, found = walked("llama", {"name": "gptaq", "bits": 2}, tmp_path / "drift")
    _, plain = walked("llama", {"name": "gptq", "bits": 2}, tmp_path / "plain")
    layer = "model.layers.1.mlp.down_proj"
    equal = KeptLayers(found.files)[layer].codes == KeptLayers(plain.files)[layer].codes
    assert float(equal.float().mean()) < 0.97


def test_what_is_in_the_model_is_what_is_in_the_files(tmp_path: Path) -> None:
    model, found = walked("qwen2", {"name": "gptq", "bits": 3, "group": 16}, tmp_path)
    again = make_model("qwen2")
    for file in found.files:
        put_in(again, kept_block(file))
    assert {name: bits(tensor) for name, tensor in again.state_dict().items()} == {
        name: bits(tensor) for name, tensor in model.state_dict().items()
    }
    for name, layer in KeptLayers(found.files).items():
        assert bits(model.get_submodule(name).weight.detach()) == bits(dequantize(layer))


@pytest.mark.parametrize(("method", "compared"), [("rtn", 4), ("gptaq", len(IDS))])
def test_losses_by_hand(method: str, compared: int, tmp_path: Path) -> None:
    """A quantizer that does not look at the untouched model is compared with it on a part of the text."""
    model, found = walked("llama", {"name": method, "bits": 3}, tmp_path)
    untouched = make_model("llama")
    layer = "model.layers.0.self_attn.q_proj"
    before, after = (one.get_submodule(layer).weight.detach().double() for one in (untouched, model))
    heard_by_it = inputs_of(untouched, [layer])[layer]
    outputs = (heard_by_it @ (before - after).T).square().sum() / (heard_by_it @ before.T).square().sum()
    assert found.figures[layer]["outputs"] == pytest.approx(float(outputs), rel=1e-4)
    weights = (before - after).square().sum() / before.square().sum()
    assert found.figures[layer]["weights"] == pytest.approx(float(weights), rel=1e-6)
    ids = IDS[:compared]
    with torch.no_grad():
        wanted = [float(one(input_ids=ids, labels=ids).loss) for one in (untouched, model)]
        ends = [one.model(ids, output_hidden_states=True).hidden_states[1].double() for one in (untouched, model)]
    assert found.tokens_compared == ids.numel()
    assert [found.loss_before, found.loss_after] == pytest.approx(wanted, rel=1e-5)
    assert found.blocks["model.layers.0"] == pytest.approx(float((ends[0] - ends[1]).square().mean()), rel=1e-3)


def test_layers_with_one_scale_each_are_not_stacked(tmp_path: Path) -> None:
    model, _ = walked("llama", {"name": "rtn", "bits": 4, "group": "tensor"}, tmp_path)
    untouched = make_model("llama")
    for part in ("q_proj", "k_proj", "v_proj"):
        layer = f"model.layers.0.self_attn.{part}"
        grid = build("quantizer", {"name": "rtn", "bits": 4, "group": "tensor"}).grid
        alone = dequantize(quantize(untouched.get_submodule(layer).weight.detach(), grid))
        assert bits(model.get_submodule(layer).weight.detach()) == bits(alone)


# --- killed, and what cannot be solved


@pytest.mark.parametrize("method", ["gptq", "rescomp"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_walk_that_was_killed_ends_with_the_same_bytes(name: str, method: str, tmp_path: Path) -> None:
    settings = {"name": method, "bits": 3}
    _, whole = walked(name, settings, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    shutil.copy(whole.files[0], tmp_path / "killed")
    _, again = walked(name, settings, tmp_path / "killed")
    assert [file.read_bytes() for file in again.files] == [file.read_bytes() for file in whole.files]
    assert (again.figures, again.blocks, again.loss_after) == (whole.figures, whole.blocks, whole.loss_after)


def unsolvable(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the given solve on nothing can be solved."""

    def refuse(*given: Any, **settings: Any) -> Any:
        raise NotPositiveDefinite("no damping up to 1 makes its moments usable")

    monkeypatch.setattr("letheon.quantization.quantizers.gptq.factorize", refuse)


def test_a_layer_that_cannot_be_solved_is_named_and_stops_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsolvable("", monkeypatch)
    said = (
        r"layer model\.layers\.0\.self_attn\.q_proj \(and 2 that read the same input\): no damping.*--allow-rtn-fallb"
    )
    with pytest.raises(CannotFinish, match=said):
        walked("llama", {"name": "gptq", "bits": 3}, tmp_path)


def test_to_the_nearest_values_where_that_is_allowed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsolvable("", monkeypatch)
    model, found = walked("llama", {"name": "gptq", "bits": 3}, tmp_path, may_fall_back=True)
    assert len(found.fallen_back) == 14
    plain, _ = walked("llama", {"name": "rtn", "bits": 3}, tmp_path / "rtn")
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)
    assert found.fallen_back == walked("llama", {"name": "gptq", "bits": 3}, tmp_path)[1].fallen_back  # kept, too


def test_activations_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("inf")
    with pytest.raises(BadInput, match=r"model\.layers\.1.*NaN or infinite"):
        walk(Walk(model, model_layout(model), build("quantizer", "gptq"), IDS, tmp_path))


def test_inputs_that_are_nearly_all_dead_are_told(tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[:40] = 0  # silu(0) * up = 0: 40 of 48 inputs of down_proj
    found = walk(Walk(model, model_layout(model), build("quantizer", {"name": "gptq", "bits": 8}), IDS, tmp_path))
    assert [text for text in found.warnings if "down_proj: 83% of its inputs are 0" in text]
