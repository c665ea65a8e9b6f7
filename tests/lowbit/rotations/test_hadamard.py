"""A rotated model says what it said before, whatever its architecture; and a file of it still does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MixtralConfig

from letheon.errors import BadInput
from letheon.lowbit import rotating
from letheon.lowbit.activations import install, low_bit_activations
from letheon.lowbit.architectures import block_layout, gain, model_layout
from letheon.lowbit.online import MARKER, read_online
from letheon.lowbit.rotating import check_rotatable, rotate_values, site_rotation
from letheon.lowbit.rotations.hadamard import HadamardRotation
from letheon.numerics.hadamard import Hadamard
from tests.architectures.models import _BLOCKS, _SHARED, ARCHITECTURES, make_from, make_model
from tests.lowbit.lively import exact, lively, logits
from tests.toys import bits

ONE_SITE = [
    {"residual": site == "residual", "values": site == "values", "keys": site == "keys", "down": site == "down"}
    for site in ("residual", "values", "keys", "down")
]


def said_when_rotated(model: Any, method: Any) -> Tensor:
    rotated = method.rotate(model)
    with low_bit_activations(model, online=rotated.online):
        return logits(model)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "settings", [{}, *ONE_SITE], ids=lambda settings: next((k for k, on in settings.items() if on), "all")
)
def test_logits_are_unchanged_in_float64(name: str, settings: dict[str, bool]) -> None:
    model = lively(name, seed=2)
    before = logits(model)
    torch.testing.assert_close(said_when_rotated(model, HadamardRotation(**settings)), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_unchanged_in_float32(name: str) -> None:
    """The model as people have it: norms and all in float32."""
    model = make_model(name, seed=2)
    with torch.no_grad():
        for parameter, lively_one in zip(model.parameters(), lively(name, seed=2).parameters(), strict=True):
            parameter.copy_(lively_one)
    before = logits(model)
    torch.testing.assert_close(said_when_rotated(model, HadamardRotation()), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"use_parallel_residual": False}, {"attention_bias": False}], ids=str)
def test_other_builds_of_gpt_neox(changes: dict[str, Any]) -> None:
    config = GPTNeoXConfig(
        **_SHARED, hidden_size=24, intermediate_size=80, num_hidden_layers=2, num_attention_heads=2, **changes
    )
    model = make_from(config).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    before = logits(model)
    torch.testing.assert_close(said_when_rotated(model, HadamardRotation()), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_stream_and_the_heads_are_really_in_another_basis(name: str) -> None:
    model = lively(name)
    layout = model_layout(model)
    embedding = model.get_submodule(layout.embedding).weight.detach().clone()
    HadamardRotation().rotate(model)
    rotated = model.get_submodule(layout.embedding).weight.detach()
    torch.testing.assert_close(rotated @ rotated.T, embedding @ embedding.T)
    assert not torch.allclose(rotated, embedding, atol=0.01)
    turned = site_rotation("residual", layout.width, seed=0).rotate(embedding)
    if layout.norm_kind == "layer":
        torch.testing.assert_close(rotated.mean(1), embedding.mean(1))
        assert float((rotated - turned).abs().mean()) < 0.5 * float(turned.abs().mean())
    else:
        torch.testing.assert_close(rotated, turned)
    for norm in [layout.final_norm, *(norm for block in layout.blocks for norm in block.readers)]:
        found = gain(model.get_submodule(norm), layout.norm_kind)
        assert torch.equal(found, torch.ones_like(found))


def test_an_outlier_channel_is_gone() -> None:
    """What it is for: one channel of the stream is far larger than the others, and then none is."""
    for name in ("llama", "gpt2"):
        model = lively(name)
        layout = model_layout(model)
        with torch.no_grad():
            for table in (layout.embedding, layout.positions):
                if table is not None:
                    model.get_submodule(table).weight[:, 3] *= 200
        peaks = []
        for _ in range(2):
            weight = model.get_submodule(layout.embedding).weight.detach()[2:]  # behind padding
            peaks.append(float((weight.abs().amax(1) / weight.square().mean(1).sqrt()).mean()))
            if len(peaks) == 1:
                HadamardRotation(keys=False, down=False).rotate(model)
        assert peaks[0] > 4 and peaks[1] < 2.5, name


@pytest.mark.parametrize("name", ["llama_grouped", "gpt_neox", "gpt2", "gemma"])
def test_merged_values_are_what_a_rotation_in_the_forward_pass_gives(name: str) -> None:
    """o hears the values rotated: caught at o's input, and put there by hand."""
    model, other = lively(name), lively(name)
    rotation = site_rotation("values", 8, seed=0)
    for block in block_layout(model):
        rotate_values(model, block, rotation)
        by_head = other.get_submodule(block.output)

        def turned(_: Any, arguments: Any) -> Any:
            x = arguments[0]
            return (rotation.rotate(x.reshape(*x.shape[:-1], -1, 8)).reshape(x.shape),)

        by_head.register_forward_pre_hook(turned)
        with torch.no_grad():
            weight = model.get_submodule(block.output).weight
            by_head.weight.copy_(weight)  # rotated in the same way; its inputs are not yet
    torch.testing.assert_close(logits(model), logits(other), rtol=1e-11, atol=1e-11)


def test_a_tied_head_is_untied_and_says_so() -> None:
    for name, is_tied in (("llama_tied", True), ("gemma", True), ("gpt2", True), ("llama", False)):
        model = lively(name)
        assert HadamardRotation().rotate(model).is_untied == is_tied
        assert not model.config.tie_word_embeddings
    model = lively("llama_tied")
    HadamardRotation(keys=False, down=False).rotate(model)
    said = logits(model)
    model.tie_weights()
    assert torch.equal(logits(model), said)
    model = lively("llama_tied")
    assert not HadamardRotation(residual=False).rotate(model).is_untied
    assert model.config.tie_word_embeddings and model_layout(model).is_tied


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_saved_and_loaded_it_says_the_same(name: str, tmp_path: Path) -> None:
    model = lively(name, seed=3)
    before = logits(model)
    rotated = HadamardRotation(seed=4).rotate(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    exact(loaded)
    online = read_online(loaded.config)
    for found, expected in ((online.keys, rotated.online.keys), (online.down, rotated.online.down)):
        assert list(found) == list(expected) == [0, 1]
        assert all(torch.equal(found[index].signs, expected[index].signs) for index in found)  # type: ignore[arg-type]
    install(loaded, online=online)
    torch.testing.assert_close(logits(loaded), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merged_alone_it_is_an_ordinary_file(name: str, tmp_path: Path) -> None:
    model = lively(name, seed=3)
    before = logits(model)
    rotated = HadamardRotation(keys=False, down=False).rotate(model)
    assert not rotated.online.keys and not rotated.online.down
    model.save_pretrained(tmp_path)
    loaded = exact(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval())
    torch.testing.assert_close(logits(loaded), before, rtol=1e-10, atol=1e-10)


def test_down_without_its_rotation_is_another_model() -> None:
    """The other half is in the forward pass; nobody should believe that the file alone will do."""
    model = lively("llama")
    before = logits(model)
    HadamardRotation(residual=False, values=False, keys=False).rotate(model)
    assert not torch.allclose(logits(model), before, atol=0.01)


def test_the_seed_decides_and_nothing_else() -> None:
    def weights(seed: int) -> list[bytes]:
        model = make_model("llama")
        HadamardRotation(seed=seed).rotate(model)
        return [bits(parameter) for parameter in model.parameters()]

    assert weights(0) == weights(0) != weights(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_kept_and_sums_are_float64(dtype: torch.dtype) -> None:
    model = make_model("llama").to(dtype)
    wide = make_model("llama").to(dtype).double()
    HadamardRotation(residual=False).rotate(model)
    HadamardRotation(residual=False).rotate(wide)
    weight, expected = (one.model.layers[0].mlp.down_proj.weight for one in (model, wide))
    assert weight.dtype == dtype
    close = torch.isclose(weight.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert bool(close.all())


def test_what_stands_against_a_rotation_is_said_at_once() -> None:
    config = LlamaConfig(
        **{**_BLOCKS, "hidden_size": 92, "intermediate_size": 100, "num_attention_heads": 2, "num_key_value_heads": 2}
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(BadInput) as raised:
        HadamardRotation().check(model)
    text = str(raised.value)
    assert "4 faults" in text
    assert (
        "rotation residual: no Hadamard matrix of order 92 is known here. Switch it off (residual: false), or rotate in blocks of 4 channels (block_diagonal: true)"
        in text
    )
    assert (
        "rotation keys: no Hadamard matrix of order 46" in text
        and "rotation down: no Hadamard matrix of order 100" in text
    )
    HadamardRotation(block_diagonal=True).check(model)
    with pytest.raises(BadInput, match=r"meta device and has no weights to rotate. Load it first"):
        HadamardRotation(block_diagonal=True).rotate(model)


def test_blocks_rotate_a_width_without_a_matrix() -> None:
    config = LlamaConfig(
        **{**_BLOCKS, "hidden_size": 92, "intermediate_size": 100, "num_attention_heads": 2, "num_key_value_heads": 2}
    )
    model = exact(make_from(config).double())
    before = logits(model)
    assert Hadamard(size=92).block == 4
    torch.testing.assert_close(
        said_when_rotated(model, HadamardRotation(block_diagonal=True)), before, rtol=1e-10, atol=1e-10
    )


def test_models_that_cannot_be_rotated_are_refused() -> None:
    model = make_model("llama")
    HadamardRotation().rotate(model)
    with pytest.raises(BadInput, match=r"has been rotated already. Take the one it was made from"):
        HadamardRotation().rotate(model)
    model = make_model("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(BadInput, match=r"quantized already. Rotate the full-precision one"):
        HadamardRotation().rotate(model)
    mixture = make_from(MixtralConfig(**_BLOCKS, num_local_experts=4))
    with pytest.raises(BadInput, match=r"a mixture of experts cannot be rotated yet. Use rotation none"):
        check_rotatable(mixture, ("residual",), block_diagonal=False)
    model = make_model("llama")
    model.config.model_type = "opt"
    with pytest.raises(BadInput, match="architecture 'opt' has no known layout"):
        HadamardRotation().rotate(model)


def test_a_bias_without_a_gain_cannot_be_folded() -> None:
    model = lively("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight[5] = 0
    with pytest.raises(BadInput, match=re.escape("norm transformer.ln_f: channel 5 has gain 0.0e+00 and bias")):
        HadamardRotation().rotate(model)
    with torch.no_grad():
        model = lively("gpt2")
        model.transformer.ln_f.weight[5] = model.transformer.ln_f.bias[5] = 0  # a channel that is switched off is fine
        before = logits(model)
        torch.testing.assert_close(said_when_rotated(model, HadamardRotation()), before, rtol=1e-10, atol=1e-10)


def test_settings_that_do_nothing_are_refused() -> None:
    with pytest.raises(BadInput, match=r"every site off does nothing. Use rotation none"):
        HadamardRotation(residual=False, values=False, keys=False, down=False)
    with pytest.raises(BadInput, match="seed of -1 is not usable"):
        HadamardRotation(seed=-1)


def test_a_damaged_marker_is_refused() -> None:
    model = make_model("llama")
    HadamardRotation().rotate(model)
    getattr(model.config, MARKER)["online"]["keys"][0]["signs"] = "+x"
    with pytest.raises(BadInput, match="letheon_rotation is damaged"):
        read_online(model.config)
    assert not read_online(make_model("llama").config).down


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "gpt_neox"])
def test_a_few_rows_at_a_time_are_all_of_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pieces = lively(name), lively(name)
    HadamardRotation().rotate(model)
    monkeypatch.setattr(rotating, "_AT_ONCE", 100)  # three rows of 32, and a part at the end
    HadamardRotation().rotate(pieces)
    for one, other in zip(model.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
