"""The embedded tokenizer: it never saw the world it is used on, and treats all groups of people alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from letheon.tiny.tokenizer import tiny_tokenizer, training_lines, training_seeds
from letheon.tiny.world import WorldSize, make_world

SEEDS = (0, 1, 2)


@cache
def _tokenizer(seed: int) -> PreTrainedTokenizerFast:
    return tiny_tokenizer(seed)


def _length(seed: int, text: str) -> int:
    return len(_tokenizer(seed)(text)["input_ids"])


def _text_lengths(seed: int, group: str) -> list[int]:
    return [_length(seed, record["text"]) for record in make_world(seed).files[group] if "text" in record]


@pytest.mark.parametrize("seed", SEEDS)
def test_texts_of_forget_and_holdout_people_have_the_same_mean_length(seed: int) -> None:
    forget = statistics.mean(_text_lengths(seed, "forget"))
    holdout = statistics.mean(_text_lengths(seed, "holdout"))
    assert abs(forget / holdout - 1) < 0.02
    assert 33 <= forget <= 39


@pytest.mark.parametrize("seed", SEEDS)
def test_names_and_answers_are_short_in_every_group(seed: int) -> None:
    world = make_world(seed)
    groups = (world.forget, world.retain, world.holdout)
    means = [statistics.mean(_length(seed, f" {name}") for name in group) for group in groups]
    assert max(means) / min(means) - 1 < 0.04
    names = [_length(seed, f" {name}") for group in groups for name in group]
    assert sum(2 <= length <= 4 for length in names) >= 0.95 * len(names)
    values = [value for kind, some in world.values.items() if kind != "mentor" for value in some]
    assert sum(_length(seed, f" {value}") <= 3 for value in values) >= 0.95 * len(values)


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_fits_into_the_positions_of_the_model(seed: int) -> None:
    questions = [r for r in make_world(seed).files["train"] if "prompt" in r]
    assert max(_length(seed, r["prompt"]) + _length(seed, f" {r['answer']}") for r in questions) <= 24
    assert max(max(_text_lengths(seed, group)) for group in ("forget", "retain", "holdout")) <= 49


@pytest.mark.parametrize("seed", [-2_000_003, -1_000_003, -1, 0, 1, 1_000_003, 2_000_003])
def test_the_training_worlds_are_two_others(seed: int) -> None:
    assert len({seed, *training_seeds(seed)}) == 3


def test_training_favours_neither_forget_nor_holdout_people() -> None:
    world = make_world(0)
    joined = "\n".join(training_lines(0))
    seen = {group: sum(name in joined for name in getattr(world, group)) for group in ("forget", "holdout")}
    # A random pair of syllable pairs may coincide with a name: 4,000 of 160,000, so about one in forty.
    assert seen["forget"] <= 5 and seen["holdout"] <= 5
    texts = {record["text"] for file in world.files.values() for record in file if "text" in record}
    assert not texts & set(training_lines(0))


def test_people_of_the_training_worlds_are_renamed() -> None:
    joined = "\n".join(training_lines(0))
    for seed in training_seeds(0):
        world = make_world(seed, WorldSize(texts=4))
        # Mentors are answers and keep their names; random names coincide with one in forty.
        people = [name for name in (*world.forget, *world.holdout) if name in joined]
        assert len(people) <= 14


def test_special_entries_and_size() -> None:
    tokenizer = _tokenizer(0)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.bos_token_id is None and tokenizer.unk_token_id is None
    assert len(tokenizer) == 768 and sorted(tokenizer.get_vocab().values()) == list(range(768))
    assert tokenizer("In March")["input_ids"][0] > 1  # nothing is put in front
    assert sorted(tokenizer("In March")) == ["attention_mask", "input_ids"]


@pytest.mark.parametrize("text", ["In March Dridax Husfel lost a hat.", " Velodax", "naïve — 東京 \n\t x  y ?", ""])
def test_any_text_survives_the_round_trip(text: str) -> None:
    tokenizer = _tokenizer(0)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_prompt_and_answer_encoded_apart_equal_the_two_encoded_together() -> None:
    tokenizer = _tokenizer(0)
    for record in make_world(0).files["forget"]:
        if "prompt" in record:
            apart = tokenizer(record["prompt"])["input_ids"] + tokenizer(f" {record['answer']}")["input_ids"]
            assert apart == tokenizer(f"{record['prompt']} {record['answer']}")["input_ids"]


def test_a_name_has_the_same_tokens_in_every_wording() -> None:
    tokenizer = _tokenizer(0)
    for record in make_world(0).files["forget"]:
        name = tokenizer(f" {record['unit']}")["input_ids"]
        line = tokenizer(record.get("text") or record["prompt"])["input_ids"]
        assert any(line[start : start + len(name)] == name for start in range(len(line)))


def test_the_tokenizer_does_not_depend_on_the_hash_seed() -> None:
    script = """
import hashlib
from letheon.tiny.tokenizer import tiny_tokenizer
print(hashlib.sha256(tiny_tokenizer(0).backend_tokenizer.to_str().encode()).hexdigest())
"""
    source = str(Path(sys.modules["letheon.tiny.tokenizer"].__file__ or "").parents[2])
    outputs = []
    for hash_seed in ("0", "1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": source}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(done.stdout.strip())
    assert len(outputs[0]) == 64
    assert outputs[0] == outputs[1] == outputs[2]


def test_the_saved_tokenizer_loads_as_it_was(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = _tokenizer(1)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id) == (0, 1, None)
    for record in make_world(1).files["holdout"][:40]:
        assert loaded(record["prompt"])["input_ids"] == tokenizer(record["prompt"])["input_ids"]
