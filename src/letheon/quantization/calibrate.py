"""Calibration text as token sequences of one length, without padding.

Records are encoded one after another, each closed by the end of text, and the stream is cut into sequences; of more
than are wanted a seeded draw without replacement is taken, in the order of the text. A record that is longer than a
sequence goes on in the next one.

Source: the usual preparation (GPTQ arXiv:2210.17323 draws windows of one long text).
Checked against: the stream by hand, every refusal, the same draw under the same seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from letheon.data.records import DataFile, Record
from letheon.errors import BadInput, require


@dataclass(frozen=True)
class Calibration:
    """What a model is run on before it is rounded."""

    ids: Int64[Tensor, "sequences length"]
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """How many there are in all."""
        return self.ids.numel()


def make_calibration(data: DataFile, tokenizer: Any, *, sequences: int, length: int, seed: int) -> Calibration:
    """Cut a file's records into sequences.

    Args:
        data: texts, or questions with their answers.
        tokenizer: the model's.
        sequences: at most so many.
        length: tokens of each, at most the context window; 2 or more.
        seed: of the draw, where there is more text than is wanted.
    Raises:
        BadInput: less text than one sequence, or text that is one token over and over.
    """
    require(sequences >= 1, f"sequences must be 1 or more, got {sequences}")
    require(length >= 2, f"sequence_length must be 2 or more, got {length}")
    stream = [token for record in data.records for token in _tokens(record, tokenizer)]
    count = len(stream) // length
    if not count:
        raise BadInput(
            f"calibration set {data.path}: {len(stream)} tokens, fewer than one sequence of {length}. Give more text, "
            "or a smaller --sequence-length"
        )
    if len(set(stream) - {tokenizer.eos_token_id}) == 1:
        raise BadInput(f"calibration set {data.path}: one token over and over says nothing. Give ordinary text")
    ids = drawn_sequences(stream, sequences=sequences, length=length, seed=seed)
    few = f"calibration set {data.path}: {count} sequences of {length} tokens, not the {sequences} that were asked for"
    return Calibration(ids, (few,) if count < sequences else ())


def drawn_sequences(
    stream: Sequence[int], *, sequences: int, length: int, seed: int
) -> Int64[Tensor, "sequences length"]:
    """At most so many sequences of a stream of tokens, a seeded draw in the order of the text; the rest is left out."""
    count = len(stream) // length
    chosen = sorted(random.Random(seed).sample(range(count), min(count, sequences)))
    return torch.tensor([list(stream[place * length : (place + 1) * length]) for place in chosen], dtype=torch.int64)


def _tokens(record: Record, tokenizer: Any) -> list[int]:
    text = record.text or f"{record.prompt} {record.answer.lstrip()}"
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return ids + end
