"""Small models, tokenizers and records that many tests share. Everything is made from seeds and fits in a blink."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from letheon.data.batches import Batch, collate
from letheon.data.encode import Encoder, Example
from letheon.data.records import Record
from letheon.tiny.model import new_tiny_model, tiny_config
from letheon.tiny.tokenizer import tiny_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor: what `bit-identical` compares."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@cache
def _tiny_tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(0)


def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny world's tokenizer, trained once a session; a copy, so that a test may change it."""
    return copy.deepcopy(_tiny_tokenizer())


def chat_tokenizer(template: str = CHATML, *extra: str) -> PreTrainedTokenizerFast:
    """The same with a chat template and its markers."""
    made = tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *extra]})
    made.chat_template = template
    return made


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The same with a token for the beginning that the tokenizer itself would add."""
    made = tokenizer()
    made.add_special_tokens({"bos_token": "<bos>"})
    return made


def prefixing_tokenizer() -> PreTrainedTokenizerFast:
    """Puts a space before all it encodes, as Llama 2 does: what is encoded apart does not join to the whole."""
    words = ["<pad>", "<eos>", "<unk>", "▁", "▁Who", "▁wrote", "▁it", "?", "▁Ann", "Ann", "o", "n", ":"]
    raw = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Split("?", "isolated"),
            pre_tokenizers.Split(":", "isolated"),
        ]
    )
    raw.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def llama(seed: int = 0, *, layers: int = 2, width: int = 32, **changes: Any) -> LlamaForCausalLM:
    """A Llama of a few ten thousand weights over the tiny tokenizer, in evaluation mode."""
    config = tiny_config(layers=layers, width=width, heads=2)
    for name, value in changes.items():
        setattr(config, name, value)
    return new_tiny_model(seed, config).eval()


def gpt2_double(seed: int = 0, *, vocabulary: int = 23, width: int = 8) -> GPT2LMHeadModel:
    """Two layers in float64, for finite differences: GPT-2 casts nothing to float32 on its way, Llama does."""
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=32, n_embd=width, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager", initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return GPT2LMHeadModel(config).double().eval()


def encoder(window: int = 128) -> Encoder:
    return Encoder(_tiny_tokenizer(), max_length=window)


def question(prompt: str, answer: str, line: int = 1, unit: str = "u") -> Record:
    return Record(line=line, unit=unit, fact=f"{unit}/{line}", prompt=prompt, answer=answer)


def text(words: str, line: int = 1, unit: str = "u") -> Record:
    return Record(line=line, unit=unit, fact=f"{unit}/{line}", text=words)


def random_examples(
    count: int, *, seed: int = 0, vocabulary: int = 700, longest: int = 12, labelled: int | None = None
) -> list[Example]:
    """Examples of random tokens with random borders; every example has a prompt and at least one label."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    made = []
    for _ in range(count):
        length = draw(4, longest + 1)
        ids = torch.randint(2, vocabulary, (length,), generator=generator).tolist()
        made.append(Example(tuple(ids), length - labelled if labelled else draw(1, length)))
    return made


def batch_of(examples: Sequence[Example], items: Sequence[int] | None = None, *, pad: int = 0) -> Batch:
    """Chosen examples (all by default) as one batch, under their own numbers."""
    chosen = list(range(len(examples))) if items is None else list(items)
    return collate([examples[item] for item in chosen], chosen, pad=pad)


def micro_batches(examples: Sequence[Example], size: int, *, pad: int = 0) -> list[Batch]:
    """All examples in batches of `size`, in order."""
    return [
        batch_of(examples, range(start, min(start + size, len(examples))), pad=pad)
        for start in range(0, len(examples), size)
    ]


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(dict(line)) + "\n" for line in lines), encoding="utf-8")
    return path


def gradients_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all `.grad`, zeros where there is none; and cleared."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        parameter.grad = None
    return found
