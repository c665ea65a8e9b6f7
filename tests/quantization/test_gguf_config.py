"""Keys of a GGUF file: what they mean to transformers, scaled frequencies, and what the files cannot say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from letheon.errors import BadInput
from letheon.models import inspect_model
from letheon.quantization.gguf_config import configuration, metadata, rope_factors, uncovered
from letheon.quantization.gguf_file import F32, read_gguf, write_gguf
from tests.architectures.models import saved

SCALED: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("name", ["llama", "llama_tied", "llama_grouped", "qwen2"])
def test_the_keys_make_the_same_configuration_again(name: str, tmp_path: Path) -> None:
    config = dict(inspect_model(saved(name)).config)
    axes = {"token_embd.weight": 2} | ({} if config["tie_word_embeddings"] else {"output.weight": 1})
    tensors = [("token_embd.weight", F32, (768, 1), bytes(768 * 4)), ("output.weight", F32, (1,), bytes(4))]
    keys = metadata(config, 4)
    path = tmp_path / "a.gguf"
    write_gguf(path, keys, axes, [tensor for tensor in tensors if tensor[0] in axes])
    again = configuration(path, read_gguf(path), keys["general.architecture"], "MODEL")
    ours, before = AutoConfig.for_model(**again).to_dict(), AutoConfig.for_model(**config).to_dict()
    ignored = {"architectures", "dtype", "initializer_range", "transformers_version", "pad_token_id", "eos_token_id"}
    differing = {key for key in before if ours.get(key) != before[key] and key not in ignored}
    assert differing <= {"rms_norm_eps", "head_dim", "sliding_window", "layer_types", "max_window_layers"}
    assert ours["rms_norm_eps"] == pytest.approx(before["rms_norm_eps"])
    assert keys["general.file_type"] == 2 and metadata(config, 8)["general.file_type"] == 7


def test_llama_3_s_frequencies_are_those_of_transformers() -> None:
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=SCALED, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** (-torch.arange(0, 128, 2) / 128)
    factors = rope_factors(config.to_dict())
    assert factors is not None and factors.dtype == torch.float32 and factors.shape == (64,)
    torch.testing.assert_close(plain / factors, scaled, rtol=1e-5, atol=0)
    assert factors[0] == 1 and factors[-1] == 8 and 1 < factors[30] < 8


def test_older_configurations_say_the_same() -> None:
    older = {"hidden_size": 512, "num_attention_heads": 4, "rope_theta": 500000.0, "rope_scaling": SCALED}
    newer = {"hidden_size": 512, "num_attention_heads": 4, "rope_parameters": SCALED}
    first, second = rope_factors(older), rope_factors(newer)
    assert first is not None and second is not None and torch.equal(first, second)
    assert rope_factors({"hidden_size": 512, "num_attention_heads": 4, "rope_theta": 1e4}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma"}, "format gguf covers the architectures llama, mistral, qwen2, not 'gemma'"),
        ({"model_type": "mistral", "sliding_window": 16}, "no sliding window, and config.json has one of 16 tokens"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "no rotary scaling but Llama 3's, and config.json has 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "has 'linear'"),
        ({"hidden_act": "gelu"}, "the activation silu, not 'gelu'"),
    ],
)
def test_what_the_files_cannot_say_is_refused(changes: dict[str, Any], words: str) -> None:
    (fault,) = uncovered({**inspect_model(saved("llama")).config, **changes})
    assert words in fault and fault.endswith("Use --format compressed_tensors")


def test_a_window_that_is_not_used_or_holds_everything_is_none() -> None:
    assert uncovered(inspect_model(saved("qwen2")).config) == []
    assert uncovered({**inspect_model(saved("mistral")).config, "sliding_window": 128}) == []


def test_keys_that_are_missing_are_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {"general.architecture": "llama"}, {"t": 1}, [("t", F32, (1,), bytes(4))])
    with pytest.raises(BadInput, match=r"its metadata lack 'llama\.block_count'"):
        configuration(tmp_path / "a.gguf", read_gguf(tmp_path / "a.gguf"), "llama", "MODEL")
