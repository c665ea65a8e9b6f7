"""What a GGUF file says of a Llama, Mistral or Qwen 2: keys from config.json, and a configuration from the keys.

Source: llama.cpp's keys, as the gguf package names them; Llama 3's rotary scaling as transformers computes it.
Checked against: transformers reads the keys back into the same configuration; its own scaled frequencies.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.quantization.gguf_file import GGUFFile

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
"""Architecture -> what GGUF files call it."""
ROPE_FACTORS = "rope_freqs.weight"
"""The tensor that `rope_factors` goes into."""


def entries(config: Mapping[str, Any]) -> int:
    """Rows of the embedding."""
    return int(config.get("vocab_size", 0))


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings by the names of transformers 5, whichever version wrote them."""
    old = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    found = {**old, **(config.get("rope_parameters") or {})}
    return {"rope_type": found.get("type", "default"), **found}


def key_heads(config: Mapping[str, Any]) -> int:
    """Heads of keys and values."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def uncovered(config: Mapping[str, Any]) -> list[str]:
    """What a GGUF file, or this writer, cannot say of an architecture."""
    what, instead = "format gguf covers", "Use --format compressed_tensors"
    if config.get("model_type") not in ARCHITECTURES:
        return [f"{what} the architectures {', '.join(ARCHITECTURES)}, not {config.get('model_type')!r}. {instead}"]
    found = []
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window is not None and int(window) < int(config.get("max_position_embeddings", 0)):
        found.append(f"{what} no sliding window, and config.json has one of {window} tokens. {instead}")
    if (kind := _rope(config)["rope_type"]) not in ("default", "llama3"):
        found.append(f"{what} no rotary scaling but Llama 3's, and config.json has {kind!r}. {instead}")
    if config.get("hidden_act", "silu") != "silu":
        found.append(f"{what} the activation silu, not {config['hidden_act']!r}. {instead}")
    return found


def rope_factors(config: Mapping[str, Any]) -> Tensor | None:
    """What llama.cpp divides every rotary frequency by, float32 (head_dim / 2,); None where it is 1 throughout.

    Llama 3: 1 for a frequency that turns more than `high` times in the original window, `factor` for one that turns
    less than `low` times, 1 / ((1 - share) / factor + share) in between.
    """
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size, factor = _head_dim(config), float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    frequency = float(rope["rope_theta"]) ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    turns = float(rope["original_max_position_embeddings"]) * frequency / (2 * math.pi)  # in the original window
    share = (turns - low) / (high - low)
    between = 1 / ((1 - share) / factor + share)
    factors = torch.where(turns > high, 1.0, torch.where(turns < low, factor, between))
    return factors.float()


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def metadata(config: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """The keys of an architecture, of a file whose layers have so many bits."""
    name = ARCHITECTURES[str(config["model_type"])]
    size = _head_dim(config)
    shape = {
        "block_count": int(config["num_hidden_layers"]),
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": key_heads(config),
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": size,
        "rope.freq_base": float(_rope(config)["rope_theta"]),
        "vocab_size": entries(config),
    }
    general = {
        "general.architecture": name,
        "general.name": str(config["model_type"]),
        "general.quantization_version": 2,
        "general.file_type": 7 if bits == 8 else 2,
    }
    return general | {f"{name}.{key}": value for key, value in shape.items()}


def configuration(path: Path, file: GGUFFile, name: str, role: str) -> dict[str, Any]:
    """config.json beside the file, else the configuration that its metadata describe."""
    beside = path.parent / "config.json"
    if beside.is_file():
        try:
            config = json.loads(beside.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BadInput(f"{role} {beside}: not JSON ({error}). Download the folder again") from error
        if not isinstance(config, dict) or ARCHITECTURES.get(str(config.get("model_type"))) != name:
            raise BadInput(f"{role} {path}: is a {name} file, and config.json beside it is of another model")
        if config.get("auto_map"):
            raise BadInput(
                f"{role} {path.parent}: needs the model's own code (auto_map in config.json). letheon never runs "
                "remote code"
            )
        return config
    if ROPE_FACTORS in file.entries:
        raise BadInput(
            f"{role} {path}: has scaled rotary frequencies, of which the file keeps the result alone. Put the "
            "model's config.json beside it"
        )
    said = file.metadata
    try:
        return {
            "model_type": name,
            "num_hidden_layers": said[f"{name}.block_count"],
            "max_position_embeddings": said[f"{name}.context_length"],
            "hidden_size": said[f"{name}.embedding_length"],
            "intermediate_size": said[f"{name}.feed_forward_length"],
            "num_attention_heads": said[f"{name}.attention.head_count"],
            "num_key_value_heads": said.get(f"{name}.attention.head_count_kv", said[f"{name}.attention.head_count"]),
            "head_dim": said.get(f"{name}.attention.key_length", said.get(f"{name}.rope.dimension_count")),
            "rms_norm_eps": said[f"{name}.attention.layer_norm_rms_epsilon"],
            "rope_parameters": {"rope_type": "default", "rope_theta": said.get(f"{name}.rope.freq_base", 10000.0)},
            "vocab_size": file.entries["token_embd.weight"].shape[0],
            "tie_word_embeddings": "output.weight" not in file.entries,
            "attention_bias": "blk.0.attn_q.bias" in file.entries,
            "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": said.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": said.get("tokenizer.ggml.padding_token_id"),
        }
    except KeyError as error:
        raise BadInput(f"{role} {path}: its metadata lack {error}. Download the file again") from error
