"""The tokenizer of the embedded world: byte-level BPE of 768 entries that never saw the world it is used on.

It is trained on two other worlds of the same generator, with 4,000 random names for their people. A
vocabulary that had seen the forget people but not the holdout people would make the texts of members shorter,
and a membership probe would then measure the tokenizer.

768 entries: at 512 the words of the texts fall apart, at 768 a text has about 36 tokens, a full name 2-4 and
an answer 1-3.

Source: this project.  Checked against: mean lengths of forget and holdout texts on three seeds, a round trip,
equal files under three hash seeds.
"""

from __future__ import annotations

import itertools
import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from letheon.tiny.world import Record, WorldSize, make_world, random_names

ENTRIES = 768
PAD, EOS = "<pad>", "<eos>"
RANDOM_NAMES = 4000
TRAINING_SIZE = WorldSize(texts=4)
LONGEST = 128


def training_seeds(seed: int) -> tuple[int, int]:
    """Seeds of the two worlds that train the tokenizer of world `seed`; never `seed` itself.

    >>> training_seeds(0)
    (1000003, 2000003)
    """
    return seed + 1_000_003, seed + 2_000_003


def training_lines(seed: int) -> list[str]:
    """What the tokenizer of world `seed` is trained on: questions with answers and texts of two other worlds.

    Their people are renamed, line by line, to one of 4,000 random names. The few names of those worlds would
    otherwise become tokens of their own and leave no room for the words of the texts.
    """
    names = itertools.cycle(random_names(random.Random(f"{seed}/tokenizer"), RANDOM_NAMES))
    lines = []
    for other in training_seeds(seed):
        files = make_world(other, TRAINING_SIZE).files
        for group in ("forget", "retain", "holdout"):
            lines += [_line(record).replace(record["unit"], next(names)) for record in files[group]]
        for group in ("general_train", "general"):
            lines += [_line(record) for record in files[group]]
    return lines


def _line(record: Record) -> str:
    """A record as the model reads it."""
    return str(record.get("text") or f"{record['prompt']} {record['answer']}")


def tiny_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer for the world of a seed: 768 entries, `<pad>` 0, `<eos>` 1, no token for the beginning.

    Trained anew at each call (under a second). The result depends on the seed alone.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=[PAD, EOS],
        # All bytes, so that any text can be encoded; sorted, so that the ids do not depend on the hash seed.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_lines(seed), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
