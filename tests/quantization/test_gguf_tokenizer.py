"""The tokenizer inside a GGUF file: what transformers makes of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from letheon.errors import BadInput
from letheon.quantization.gguf_file import F32, write_gguf
from letheon.quantization.gguf_tokenizer import _CUTS, tokenizer_metadata
from tests.toys import bos_tokenizer, chat_tokenizer, prefixing_tokenizer, tokenizer

TEXTS = ["Who wrote it? Ann's book, 12345  times.\n\n  and more", "<eos>über 12 \t ☃", "I'LL we'Ll<pad>"]


def saved(made: Any, path: Path) -> Path:
    made.save_pretrained(path)
    return path


def split_tokenizer(cut: str, **changes: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE behind a Split, as Llama 3 and Qwen 2 have it."""
    pattern = next(pattern for pattern, name in _CUTS.items() if name == cut)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([*TEXTS, "12345 12345 I'LL we'Ll now  now"] * 3, trainer)
    for name, value in changes.items():
        setattr(raw, name, value)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


@pytest.mark.parametrize("kind", ["tiny", "chat", "llama-bpe", "qwen2"])
def test_transformers_makes_the_same_tokenizer_of_it(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    original = {"tiny": tokenizer, "chat": chat_tokenizer}.get(kind, lambda: split_tokenizer(kind))()
    found = tokenizer_metadata(saved(original, tmp_path / "model"), 800)
    config = {"general.architecture": "llama", "llama.block_count": 1}
    (tmp_path / "file").mkdir()
    write_gguf(tmp_path / "file" / "a.gguf", {**config, **found}, {"t": 1}, [("t", F32, (1,), bytes(4))])
    again = AutoTokenizer.from_pretrained(tmp_path / "file", gguf_file="a.gguf")
    for text in TEXTS:
        assert again(text).input_ids == original(text).input_ids
        assert again.decode(original(text).input_ids) == original.decode(original(text).input_ids)
    assert again.eos_token == original.eos_token and again.pad_token == original.pad_token
    assert found["tokenizer.ggml.pre"] == {"tiny": "gpt-2", "chat": "gpt-2"}.get(kind, kind)
    assert again.chat_template == original.chat_template


def test_special_added_and_missing_tokens_are_marked(tmp_path: Path) -> None:
    made = chat_tokenizer("{{ messages }}")
    made.add_tokens(["<think>"])
    found = tokenizer_metadata(saved(made, tmp_path), 774)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[:2] == ["<pad>", "<eos>"] and kinds[:3] == [3, 3, 1]
    assert tokens[768:] == ["<|im_start|>", "<|im_end|>", "<think>", "[PAD771]", "[PAD772]", "[PAD773]"]
    assert kinds[768:] == [3, 3, 4, 5, 5, 5]
    assert found["tokenizer.ggml.eos_token_id"] == 1 and "tokenizer.ggml.bos_token_id" not in found
    assert found["tokenizer.chat_template"] == "{{ messages }}"
    assert found["tokenizer.ggml.merges"][0] == "Ġ t"


def test_whether_text_begins_with_a_token_is_asked_of_the_tokenizer(tmp_path: Path) -> None:
    found = tokenizer_metadata(saved(bos_tokenizer(), tmp_path / "plain"), 769)
    assert (found["tokenizer.ggml.bos_token_id"], found["tokenizer.ggml.add_bos_token"]) == (768, False)
    from tokenizers import processors

    made = bos_tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 768)]
    )
    found = tokenizer_metadata(saved(made, tmp_path / "adding"), 769)
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (True, False)


def test_what_is_not_covered_is_refused_with_the_reason(tmp_path: Path) -> None:
    spaced = tokenizer()
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    cut = tokenizer()
    cut.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    composed = tokenizer()
    composed.backend_tokenizer.normalizer = normalizers.NFC()
    cases: list[tuple[Any, int, str]] = [
        (prefixing_tokenizer(), 768, r"it is WordLevel without a byte level \(SentencePiece\?\)"),
        (spaced, 768, "it puts a space before all text"),
        (cut, 768, "it cuts text in a way that has no name here"),
        (composed, 768, r"it normalizes text \(NFC\)"),
        (tokenizer(), 767, "it has tokens beyond the 767 rows of the embedding"),
    ]
    for number, (made, entries, words) in enumerate(cases):
        with pytest.raises(BadInput, match=f"cannot be written into a GGUF file: {words}.*--format compressed_tensors"):
            tokenizer_metadata(saved(made, tmp_path / str(number)), entries)
    with pytest.raises(BadInput, match=r"there is no tokenizer\.json"):
        tokenizer_metadata(tmp_path, 768)


def test_qwen_s_normalizer_is_left_out_as_in_every_such_file(tmp_path: Path) -> None:
    made = split_tokenizer("qwen2", normalizer=normalizers.NFC())
    assert tokenizer_metadata(saved(made, tmp_path), 400)["tokenizer.ggml.pre"] == "qwen2"
