"""What a GGUF file says of its tokenizer, as far as a tokenizer.json of byte-level BPE says it.

    tokens, token_type (1 normal, 3 control, 4 user-defined, 5 unused), merges, ids of the special tokens, whether text
    begins and ends with one, the chat template, and `pre`, which names how text is cut before merging
llama.cpp knows the cuts by name, so only those that it has a name for here are written: GPT-2's (`gpt-2`), that of
Llama 3 (`llama-bpe`) and of Qwen 2 (`qwen2`; its NFC normalization is left out there, as in every such file).
Not covered: SentencePiece and Unigram vocabularies (Llama 2, Mistral's first, Gemma), other cuts, other normalizers.

Source: llama.cpp's metadata keys, as the gguf package names them.
Checked against: transformers builds the tokenizer again from the file, and encodes and decodes like the original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from letheon.errors import BadInput
from letheon.models import load_tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {rf"{_WORDS}\p{{N}}{{1,3}}{_REST}": "llama-bpe", rf"{_WORDS}\p{{N}}{_REST}": "qwen2"}
"""Pattern of a Split in front of the byte level -> its name."""


def tokenizer_metadata(path: Path, entries: int) -> dict[str, Any]:
    """The keys that describe a folder's tokenizer.

    Args:
        path: the model folder.
        entries: rows of the embedding; tokens that the tokenizer lacks are written as unused.
    Raises:
        BadInput: a tokenizer that these keys cannot describe.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        raise _uncovered(path, "there is no tokenizer.json")
    raw = json.loads(file.read_text(encoding="utf-8"))
    cut = _cut(path, raw)
    vocabulary = {int(number): token for token, number in raw["model"]["vocab"].items()}
    kinds = dict.fromkeys(vocabulary, _NORMAL)
    for added in raw.get("added_tokens") or []:
        vocabulary[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    if max(vocabulary) >= entries:
        raise _uncovered(path, f"it has tokens beyond the {entries} rows of the embedding")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in raw["model"]["merges"]]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": [vocabulary.get(number, f"[PAD{number}]") for number in range(entries)],
        "tokenizer.ggml.token_type": [kinds.get(number, _UNUSED) for number in range(entries)],
        "tokenizer.ggml.merges": merges,
    }
    return found | _special(load_tokenizer(path))


def _special(tokenizer: Any) -> dict[str, Any]:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
    }
    found: dict[str, Any] = {f"tokenizer.ggml.{key}": number for key, number in ids.items() if number is not None}
    encoded = tokenizer("a").input_ids
    found["tokenizer.ggml.add_bos_token"] = tokenizer.bos_token_id is not None and encoded[0] == tokenizer.bos_token_id
    found["tokenizer.ggml.add_eos_token"] = tokenizer.eos_token_id is not None and encoded[-1] == tokenizer.eos_token_id
    if isinstance(tokenizer.chat_template, str):
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _cut(path: Path, raw: Mapping[str, Any]) -> str:
    """llama.cpp's name of how text is cut before merging."""
    model, before = raw.get("model") or {}, raw.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers") if before.get("type") == "Sequence" else [before]
    kinds = [step.get("type") for step in steps or []]
    if model.get("type") != "BPE" or model.get("byte_fallback") or not kinds or kinds[-1] != "ByteLevel":
        raise _uncovered(path, f"it is {model.get('type')} without a byte level (SentencePiece?)")
    normalizer = (raw.get("normalizer") or {}).get("type")
    assert steps is not None
    if steps[-1].get("add_prefix_space"):
        raise _uncovered(path, "it puts a space before all text")
    if kinds == ["ByteLevel"] and steps[-1].get("use_regex", True):
        cut = "gpt-2"
    elif kinds == ["Split", "ByteLevel"]:
        cut = _CUTS.get((steps[0].get("pattern") or {}).get("Regex", ""), "")
    else:
        cut = ""
    if not cut:
        raise _uncovered(path, "it cuts text in a way that has no name here")
    if normalizer is not None and (cut, normalizer) != ("qwen2", "NFC"):
        raise _uncovered(path, f"it normalizes text ({normalizer})")
    return cut


def _uncovered(path: Path, why: str) -> BadInput:
    return BadInput(
        f"MODEL {path}: its tokenizer cannot be written into a GGUF file: {why}. Written is byte-level BPE as GPT-2, "
        "Llama 3 and Qwen 2 have it. Use --format compressed_tensors, or llama.cpp's own converter on --format dense"
    )
