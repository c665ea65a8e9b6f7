"""Experts of a mixture: tokens routed by hand, a plain MLP of the same weights, experts that hear nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from letheon.errors import BadInput, CannotFinish
from letheon.lowbit.architectures import model_layout
from letheon.lowbit.matrices import decoder_matrices
from letheon.methods import build
from letheon.numerics.grids import Quantized, dequantize, quantize
from letheon.quantization import block_walk
from letheon.quantization.block_walk import Walk, Walked, put_in, walk
from letheon.quantization.kept_blocks import KeptLayers, kept_block
from tests.architectures.models import _BLOCKS, make_from, mixture
from tests.quantization.slow_solvers import Layer, by_weight, order_of, slow_codes
from tests.toys import bits

IDS = torch.randint(2, 768, (6, 20), generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_local_experts": 3, "initializer_range": 0.2}


@pytest.fixture(autouse=True)
def _small_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches, the last of them smaller."""
    monkeypatch.setattr(block_walk, "TOKENS_AT_ONCE", 4 * IDS.shape[1])


def walked(model: Any, method: Any, keep: Path, **settings: Any) -> Walked:
    return walk(Walk(model, model_layout(model), build("quantizer", method), IDS, keep, **settings))


def state_bits(model: Any) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


# --- tokens routed by hand


def reaching(model: Any, block: int) -> tuple[Tensor, list[set[int]]]:
    """What the mixture of a block hears in a plain pass of the whole model, and each token's experts, in float64."""
    found: list[Tensor] = []
    mlp = model.model.layers[block].mlp
    hook = mlp.register_forward_pre_hook(lambda _, given: found.append(given[0].detach().double()))
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    hook.remove()
    tokens = found[0].reshape(-1, found[0].shape[-1])
    router = mlp.gate.weight.detach().double()
    chosen = []
    for token in tokens:
        sizes = [float(row @ token) for row in router]
        chosen.append(set(sorted(range(len(sizes)), key=lambda expert: -sizes[expert])[: mlp.top_k]))
    return tokens, chosen


def inner(inputs: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    gated = inputs @ gate.double().T
    return gated / (1 + (-gated).exp()) * (inputs @ up.double().T)


def agreement(found: Quantized, layer: Layer, alpha: float) -> float:
    """Share of codes that the slow solver gives, too."""
    wanted = slow_codes(
        layer,
        order=order_of(layer, "static"),
        step=by_weight(found, found.scale),
        zero=by_weight(found, found.zero),
        code_range=found.grid.code_range,  # type: ignore[union-attr]
        damping=0.01,
        alpha=alpha,
    )
    return float((found.codes == torch.tensor(wanted)).float().mean())


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_each_expert_is_solved_on_the_tokens_that_are_routed_to_it(method: str, tmp_path: Path) -> None:
    model, untouched = mixture(**SMALL), mixture(**SMALL)
    found = walked(model, {"name": method, "bits": 4}, tmp_path)
    alpha = 0.25 if method == "gptaq" else 0.0
    before, after = decoder_matrices(untouched), KeptLayers(found.files)
    for block in range(2):
        now, chosen = reaching(model, block)  # attention and all blocks before as they have become
        original, _ = reaching(untouched, block)
        for expert in range(3):
            its = [token for token, experts in enumerate(chosen) if expert in experts]
            assert 10 < len(its) < len(chosen)
            stem = f"model.layers.{block}.block_sparse_moe.experts.{expert}"
            gate, up, down = (f"{stem}.{part}" for part in ("w1", "w3", "w2"))
            for name in (gate, up):
                layer = Layer(before[name].weight.double(), now[its], original[its])
                assert agreement(after[name], layer, alpha) > 0.98, name
            heard = inner(now[its], dequantize(after[gate]), dequantize(after[up]))
            heard_before = inner(original[its], before[gate].weight, before[up].weight)
            layer = Layer(before[down].weight.double(), heard, heard_before)
            assert agreement(after[down], layer, alpha) > 0.98, down


def test_all_tokens_instead_of_its_own_are_seen_by_the_comparison(tmp_path: Path) -> None:
    """The comparison above can fail."""
    model = mixture(**SMALL)
    after = KeptLayers(walked(model, {"name": "gptq", "bits": 4}, tmp_path).files)
    now, _ = reaching(model, 0)
    name = "model.layers.0.block_sparse_moe.experts.0.w1"
    layer = Layer(decoder_matrices(mixture(**SMALL))[name].weight.double(), now, now)
    assert agreement(after[name], layer, 0.0) < 0.95


def test_losses_of_an_expert_are_those_on_its_tokens(tmp_path: Path) -> None:
    model, untouched = mixture(**SMALL), mixture(**SMALL)
    found = walked(model, {"name": "rtn", "bits": 3}, tmp_path)
    now, chosen = reaching(model, 0)
    heard = now[[token for token, experts in enumerate(chosen) if 1 in experts]]
    name = "model.layers.0.block_sparse_moe.experts.1.w3"
    before, after = (decoder_matrices(one)[name].weight.double() for one in (untouched, model))
    outputs = (heard @ (before - after).T).square().sum() / (heard @ before.T).square().sum()
    assert found.figures[name]["outputs"] == pytest.approx(float(outputs), rel=1e-4)
    assert found.figures[name]["weights"] == pytest.approx(
        float((before - after).square().sum() / before.square().sum()), rel=1e-5
    )


# --- equal models, equal codes


@pytest.mark.parametrize("method", ["gptq", "gptaq", "rescomp", "refit", "rtn"])
def test_one_expert_is_a_plain_mlp(method: str, tmp_path: Path) -> None:
    mixed = mixture(num_local_experts=1, num_experts_per_tok=1)
    same = {name: getattr(mixed.config, name) for name in ("rope_parameters", "rms_norm_eps", "num_key_value_heads")}
    plain = make_from(LlamaConfig(**{**_BLOCKS, **same}, tie_word_embeddings=False))
    plain.load_state_dict(
        {
            **{name: tensor for name, tensor in mixed.state_dict().items() if ".mlp." not in name},
            **{f"{_plain(name)}.weight": each.weight for name, each in decoder_matrices(mixed).items()},
        }
    )
    settings = {"name": method, "bits": 4}
    of_experts = KeptLayers(walked(mixed, settings, tmp_path / "mixed").files)
    of_mlp = KeptLayers(walked(plain, settings, tmp_path / "plain").files)
    assert {_plain(name) for name in of_experts} == set(of_mlp)
    for name, layer in of_experts.items():
        share = float((layer.codes == of_mlp[_plain(name)].codes).float().mean())
        assert share > 0.99, name
        assert share == 1 or ".layers.1." in name, name  # sums of the first block are the same sums


def _plain(name: str) -> str:
    for part, other in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        name = name.replace(f"block_sparse_moe.experts.0.{part}", f"mlp.{other}")
    return name


def test_experts_in_another_order_are_the_same_experts(tmp_path: Path) -> None:
    order = [2, 0, 3, 1]
    model, other = mixture(), mixture()
    with torch.no_grad():
        for block in other.model.layers:
            for weight in (block.mlp.gate.weight, block.mlp.experts.gate_up_proj, block.mlp.experts.down_proj):
                weight.copy_(weight[order].clone())
    first, second = (
        walked(one, {"name": "gptq", "bits": 3}, tmp_path / name) for name, one in (("a", model), ("b", other))
    )
    one, two = KeptLayers(first.files), KeptLayers(second.files)
    for place, expert in enumerate(order):
        for part in ("w1", "w2", "w3"):
            moved = two[f"model.layers.0.block_sparse_moe.experts.{place}.{part}"]
            assert torch.equal(moved.codes, one[f"model.layers.0.block_sparse_moe.experts.{expert}.{part}"].codes)
    assert second.loss_after == pytest.approx(first.loss_after, rel=1e-4)


# --- files, and killed


@pytest.mark.parametrize("method", ["gptq", "gptaq", "rtn"])
def test_what_is_in_the_model_is_what_is_in_the_files_and_a_killed_walk_ends_with_them(
    method: str, tmp_path: Path
) -> None:
    settings = {"name": method, "bits": 3, "group": 16}
    model = mixture()
    whole = walked(model, settings, tmp_path / "whole")
    again = mixture()
    for file in whole.files:
        put_in(again, kept_block(file))
    assert state_bits(again) == state_bits(model)
    routers = {name for name, _ in model.named_parameters() if name.endswith("mlp.gate.weight")}
    assert len(routers) == 2
    assert all(state_bits(model)[name] == state_bits(mixture())[name] for name in routers)
    (tmp_path / "killed").mkdir()
    shutil.copy(whole.files[0], tmp_path / "killed")
    other = mixture()
    killed = walked(other, settings, tmp_path / "killed")
    assert [file.read_bytes() for file in killed.files] == [file.read_bytes() for file in whole.files]
    assert (killed.figures, killed.loss_after) == (whole.figures, whole.loss_after)
    assert state_bits(other) == state_bits(model)


# --- experts that hear nothing


def starved() -> Any:
    """In the second block every token goes to the first or the second of four experts, by the sign of one product."""
    model = mixture(num_experts_per_tok=1)
    router = model.model.layers[1].mlp.gate.weight
    with torch.no_grad():
        router[1:] = torch.stack([-router[0], torch.zeros_like(router[0]), torch.zeros_like(router[0])])
    return model


UNHEARD = [
    f"model.layers.1.block_sparse_moe.experts.{expert}.{part}" for expert in (2, 3) for part in ("w1", "w3", "w2")
]


def test_an_expert_that_hears_nothing_is_named_and_the_blocks_before_are_kept(tmp_path: Path) -> None:
    said = r"layer model\.layers\.1\.block_sparse_moe\.experts\.2\.w1 \(and 1 that.*heard nothing.*--allow-rtn-fallback"
    with pytest.raises(CannotFinish, match=said):
        walked(starved(), "gptq", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["block-00000.safetensors"]


def test_it_is_rounded_to_the_nearest_values_where_that_is_allowed_and_counted(tmp_path: Path) -> None:
    found = walked(starved(), {"name": "gptq", "bits": 3}, tmp_path, may_fall_back=True)
    assert found.fallen_back == UNHEARD
    before, after = decoder_matrices(starved()), KeptLayers(found.files)
    grid = build("quantizer", {"name": "rtn", "bits": 3}).grid
    for name in UNHEARD:
        assert torch.equal(after[name].codes, quantize(before[name].weight.contiguous(), grid).codes)
        assert set(found.figures[name]) == {"weights"}  # outputs were not heard, and are not 0
    heard = "model.layers.1.block_sparse_moe.experts.1.w1"
    assert set(found.figures[heard]) == {"weights", "outputs"}
    assert not torch.equal(after[heard].codes, quantize(before[heard].weight.contiguous(), grid).codes)


def test_rtn_needs_nothing_to_be_heard(tmp_path: Path) -> None:
    found = walked(starved(), {"name": "rtn", "bits": 3}, tmp_path)
    assert not found.fallen_back and not found.warnings
    assert all(("outputs" in lost) == (name not in UNHEARD) for name, lost in found.figures.items())


def test_an_expert_that_hears_few_tokens_is_told(tmp_path: Path) -> None:
    model = mixture(num_experts_per_tok=1, intermediate_size=32)
    found = walked(model, {"name": "gptq", "bits": 8}, tmp_path)
    _, chosen = reaching(model, 0)  # attention as it has become
    counts = [sum(expert in experts for experts in chosen) for expert in range(4)]
    assert min(counts) < 32 < max(counts)
    (warning,) = [text for text in found.warnings if "model.layers.0." in text]
    assert f"fewer of the {IDS.numel()} tokens" in warning and "(32)" in warning
    for expert, count in enumerate(counts):
        assert (f"experts.{expert} {count}" in warning) == (count < 32)


def test_an_expert_that_hears_nothing_but_zeros_hears_nothing(tmp_path: Path) -> None:
    def silent() -> Any:
        model = mixture()
        with torch.no_grad():
            model.model.layers[1].mlp.experts.gate_up_proj[2, :48] = 0  # silu(0) * up = 0
        return model

    found = walked(silent(), {"name": "gptq", "bits": 3}, tmp_path / "allowed", may_fall_back=True)
    assert found.fallen_back == ["model.layers.1.block_sparse_moe.experts.2.w2"]
    with pytest.raises(CannotFinish, match=r"experts\.2\.w2: it heard nothing of the calibration text"):
        walked(silent(), "gptq", tmp_path / "not")


def test_a_quantizer_that_changes_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"quantizer 'awq' does not know the experts of a mixture.*--method gptq"):
        walked(mixture(), "awq", tmp_path)
