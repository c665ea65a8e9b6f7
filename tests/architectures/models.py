"""Small random models of every architecture that must work, each saved with the tiny world's tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
)

from tests.toys import tokenizer

_SHARED: dict[str, Any] = {
    "vocab_size": 768,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "initializer_range": 0.06,
}
_BLOCKS: dict[str, Any] = {
    **_SHARED,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}

ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_BLOCKS, tie_word_embeddings=False),
    "llama_tied": lambda: LlamaConfig(**_BLOCKS, tie_word_embeddings=True),
    "llama_grouped": lambda: LlamaConfig(**{**_BLOCKS, "num_key_value_heads": 2}, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**{**_BLOCKS, "num_key_value_heads": 2}),
    "mistral": lambda: MistralConfig(**{**_BLOCKS, "num_key_value_heads": 2}, sliding_window=16),
    "gemma": lambda: GemmaConfig(**{**_BLOCKS, "num_key_value_heads": 1}, head_dim=8),
    "gpt2": lambda: GPT2Config(**_SHARED, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gpt_neox": lambda: GPTNeoXConfig(
        **_SHARED,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    ),
}
"""Name -> configuration. GPT-2 keeps its default dropout of 0.1: training must not depend on chance."""

LINEARS_PER_BLOCK = {
    "llama": 7,
    "llama_tied": 7,
    "llama_grouped": 7,
    "qwen2": 7,
    "mistral": 7,
    "gemma": 7,
    "gpt2": 4,
    "gpt_neox": 4,
}
"""Weight matrices in one block: q, k, v, o, gate, up, down; or fused qkv, out, up, down."""


def mixture(seed: int = 0, **changes: Any) -> Any:
    """A random Mixtral of four experts, two of which a token is routed to. Its experts are no linears."""
    settings: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}
    return make_from(MixtralConfig(**{**_BLOCKS, "num_key_value_heads": 2, **settings, **changes}), seed)


def make_model(name: str, seed: int = 0) -> Any:
    """A random float32 model in evaluation mode, a function of the seed."""
    return make_from(ARCHITECTURES[name](), seed)


def make_from(config: PretrainedConfig, seed: int = 0) -> Any:
    """A random model of any configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).float().eval()


def save_model_folder(model: Any, folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """The model and the tiny tokenizer as a Hugging Face folder."""
    model.to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@cache
def _home() -> Path:
    import os

    return Path(os.environ["LETHEON_HOME"]) / "architectures"


@cache
def saved(name: str) -> Path:
    """The folder of an architecture, written once a session; nobody may change it."""
    return save_model_folder(make_model(name), _home() / name)
