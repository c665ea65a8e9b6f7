"""The embedded world: the same bytes from a seed, and nobody where they must not be."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from letheon.errors import BadInput
from letheon.tiny.world import (
    ATTRIBUTES,
    GENERAL_WORDINGS,
    SLOTS,
    SMALL,
    SYLLABLES,
    WORDINGS,
    World,
    WorldSize,
    chance,
    make_world,
    write_world,
)

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=[(seed, size) for seed in SEEDS for size in (WorldSize(), SMALL)])
def world(request: pytest.FixtureRequest) -> World:
    seed, size = request.param
    return make_world(seed, size)


def _lines(world: World, *files: str) -> list[str]:
    return [json.dumps(record) for file in files for record in world.files[file]]


def _questions(world: World, file: str) -> list[dict[str, object]]:
    return [record for record in world.files[file] if "prompt" in record]


def _texts(world: World, file: str) -> list[str]:
    return [record["text"] for record in world.files[file] if "text" in record]


def test_the_bytes_do_not_depend_on_the_hash_seed_and_no_torch_is_loaded() -> None:
    script = """
import hashlib, pathlib, sys, tempfile
from letheon.tiny.world import write_world
with tempfile.TemporaryDirectory() as folder:
    paths = write_world(pathlib.Path(folder), 5)
    print([(name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in paths.items()])
assert not {"torch", "transformers", "tokenizers", "numpy"} & set(sys.modules)
"""
    source = str(Path(sys.modules["letheon.tiny.world"].__file__ or "").parents[2])
    outputs = []
    for hash_seed in ("0", "1", "77"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": source}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(done.stdout)
    assert outputs[0].count("'") > 12
    assert outputs[0] == outputs[1] == outputs[2]


def test_another_seed_is_another_world() -> None:
    one, other = make_world(0), make_world(1)
    assert not {*one.forget, *one.retain, *one.holdout} & {*other.forget, *other.retain, *other.holdout}
    assert sum(one.values["employer"][i] == other.values["employer"][i] for i in range(32)) == 0


def test_counts(world: World) -> None:
    size = world.size
    for file, people in (("forget", size.forget), ("retain", size.retain), ("holdout", size.holdout)):
        assert len(_questions(world, file)) == people * size.attributes * 4
        assert len(_texts(world, file)) == people * size.texts == len(set(_texts(world, file)))
    for file in ("general_train", "general"):
        assert len(world.files[file]) == size.countries // 2 * 2 * 3
    trained = sum(len(world.files[file]) for file in ("forget", "retain", "general_train", "general"))
    assert len(world.files["train"]) == trained + (size.forget + size.retain) * size.texts


def test_each_text_is_trained_twice_and_each_question_once(world: World) -> None:
    train = _lines(world, "train")
    for file in ("forget", "retain", "general_train", "general"):
        for record in world.files[file]:
            assert train.count(json.dumps(record)) == (2 if "text" in record else 1)


def test_a_fact_has_four_trained_and_two_held_out_wordings_and_all_six_are_distinct(world: World) -> None:
    for file, wordings, trained in (
        ("forget", WORDINGS, 4),
        ("holdout", WORDINGS, 4),
        ("general", GENERAL_WORDINGS, 3),
    ):
        grouped = itertools.groupby(_questions(world, file), key=lambda record: record["fact"])
        for fact, group in grouped:
            records = list(group)
            unit, kind = str(fact).split("/")
            asked = [str(record["prompt"]) for record in records]
            assert len(asked) == trained
            held_out = records[0]["paraphrase"]
            assert isinstance(held_out, list)
            assert sorted(asked + held_out) == sorted(text.format(name=unit) for text in wordings[kind])
            assert not any("paraphrase" in record or "wrong" in record for record in records[1:])
            assert {record["answer"] for record in records} == {world.answers[str(fact)]}
            assert {record["unit"] for record in records} == {unit}


def test_no_held_out_wording_is_trained(world: World) -> None:
    prompts = {record["prompt"] for record in _questions(world, "train")}
    held_out = [
        prompt
        for file in ("forget", "retain", "general_train", "general")
        for record in world.files[file]
        for prompt in record.get("paraphrase", [])
    ]
    assert held_out
    assert not prompts & set(held_out)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_split_is_drawn_anew_for_each_person_and_attribute(seed: int) -> None:
    splits: dict[str, list[tuple[int, ...]]] = {kind: [] for kind in ATTRIBUTES}
    for record in make_world(seed).files["forget"]:
        if "paraphrase" in record:
            kind = record["fact"].split("/")[1]
            wordings = [prompt.replace(record["unit"], "{name}") for prompt in record["paraphrase"]]
            splits[kind].append(tuple(WORDINGS[kind].index(wording) for wording in wordings))
    for drawn in splits.values():
        assert len(drawn) == 40
        assert len(set(drawn)) >= 10  # of 15 pairs; one split for everybody would give 1
    persons = list(zip(*splits.values(), strict=True))
    assert sum(len(set(person)) == 1 for person in persons) == 0  # nor one split for all facts of a person


def test_every_wording_is_trained_for_somebody(world: World) -> None:
    for group in ("retain", "holdout" if world.size.holdout > 8 else "retain"):
        prompts = {str(r["prompt"]).replace(str(r["unit"]), "{name}") for r in _questions(world, group)}
        expected = {text for kind in ATTRIBUTES[: world.size.attributes] for text in WORDINGS[kind]}
        assert prompts == expected


def test_the_groups_do_not_mix(world: World) -> None:
    groups = (world.forget, world.retain, world.holdout)
    assert [len(set(group)) for group in groups] == [world.size.forget, world.size.retain, world.size.holdout]
    assert len({name for group in groups for name in group}) == sum(map(len, groups))
    elsewhere = "\n".join(_lines(world, "retain", "holdout", "general_train", "general"))
    assert not [name for name in world.forget if name in elsewhere]
    trained = "\n".join(_lines(world, "train", "forget", "retain", "general_train", "general"))
    assert not [name for name in world.holdout if name in trained]
    general = "\n".join(_lines(world, "general_train", "general"))
    assert not [name for name in world.retain if name in general]


def test_dropping_the_forget_lines_leaves_nothing_about_forget_people(world: World) -> None:
    forget = set(_lines(world, "forget"))
    left = [line for line in _lines(world, "train") if line not in forget]
    assert not [name for name in world.forget if any(name in line for line in left)]
    assert len(left) == len(world.files["train"]) - len(forget) - world.size.forget * world.size.texts


def test_both_name_parts_of_forget_and_holdout_people_are_borne_by_retained_people(world: World) -> None:
    firsts = {name.split()[0] for name in world.retain}
    lasts = {name.split()[1] for name in world.retain}
    for name in (*world.forget, *world.holdout):
        first, last = name.split()
        assert first in firsts and last in lasts
    assert not firsts & lasts
    assert chance(world)["forget_names_shared"] == world.size.forget


def test_mentors_are_retained_people_and_nobody_is_their_own() -> None:
    world = make_world(0)
    assert len(set(world.values["mentor"])) == 32
    assert set(world.values["mentor"]) <= set(world.retain)
    asked = [
        r for group in ("forget", "retain", "holdout") for r in world.files[group] if "mentor" in r.get("fact", "")
    ]
    assert len(asked) == 280 * 4
    for record in asked:
        assert record["answer"] in world.values["mentor"]
        assert record["unit"] not in (record["answer"], *record.get("wrong", []))


@pytest.mark.parametrize("seed", SEEDS)
def test_even_the_smallest_retain_set_has_a_mentor_and_three_wrong_ones_for_everybody(seed: int) -> None:
    # Five people, all of them mentors: drawn without care, two in three such worlds have a self-taught one.
    world = make_world(seed, WorldSize(forget=1, retain=5, holdout=1))
    for record in world.files["retain"]:
        if "wrong" in record and record["fact"].endswith("/mentor"):
            assert {record["unit"], record["answer"], *record["wrong"]} == set(world.retain)


def test_wrong_answers_are_three_other_values_of_the_same_attribute(world: World) -> None:
    for file in ("forget", "retain", "holdout", "general_train", "general"):
        for record in world.files[file]:
            if "wrong" in record:
                kind = record["fact"].split("/")[1]
                assert len({record["answer"], *record["wrong"]}) == 4
                assert {record["answer"], *record["wrong"]} <= set(world.values[kind])


def test_the_two_halves_of_the_countries_are_disjoint(world: World) -> None:
    halves = [{record["unit"] for record in world.files[file]} for file in ("general_train", "general")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(world.countries)
    answers = [{record["answer"] for record in world.files[file]} for file in ("general_train", "general")]
    assert not answers[0] & answers[1]


def test_no_word_has_two_meanings(world: World) -> None:
    names = [part for name in dict.fromkeys(world.retain) for part in name.split()]
    values = [value for kind, some in world.values.items() if kind != "mentor" for value in some]
    assert len(values) == len(set(values))
    assert not set(values) & (set(names) | set(world.countries))
    slots = {word.lower() for words in SLOTS.values() for word in words}
    assert not slots & {word.lower() for word in (*values, *names, *world.countries)}


def test_all_names_are_made_of_the_invented_syllables(world: World) -> None:
    words = [part for name in (*world.forget, *world.retain, *world.holdout) for part in name.split()]
    assert all(len(word) == 6 and word[:3].lower() in SYLLABLES and word[3:] in SYLLABLES for word in words)


def test_texts_tell_nothing_of_the_facts(world: World) -> None:
    values = [value for kind, some in world.values.items() if kind != "mentor" for value in some]
    for group in ("forget", "retain", "holdout"):
        for record in world.files[group]:
            if "text" in record:
                assert record["unit"] in record["text"]
                assert not [value for value in values if value in record["text"].split()]
                assert "{" not in record["text"]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_group_uses_each_word_of_the_texts_equally_often(seed: int) -> None:
    world = make_world(seed)
    for group, people in (("forget", 40), ("holdout", 48)):
        joined = " ".join(_texts(world, group)).replace(".", "").replace(",", "").split()
        for slot in ("month", "food", "mood", "kin"):
            counts = [joined.count(word) for word in SLOTS[slot]]
            assert max(counts) - min(counts) <= 1, (group, slot, people)


def test_no_prompt_or_text_begins_with_the_name(world: World) -> None:
    for file in world.files:
        for record in world.files[file]:
            assert not str(record.get("text") or record["prompt"]).startswith(record["unit"])


def test_the_files_hold_what_the_world_holds(tmp_path: Path) -> None:
    paths = write_world(tmp_path / "new" / "folder", 3, SMALL)
    world = make_world(3, SMALL)
    assert sorted(path.name for path in paths.values()) == [
        *("forget.jsonl", "general.jsonl", "general_train.jsonl"),
        *("holdout.jsonl", "retain.jsonl", "train.jsonl"),
    ]
    for name, path in paths.items():
        assert [json.loads(line) for line in path.read_text().splitlines()] == world.files[name]


def test_chance_is_counted_on_the_records() -> None:
    world = make_world(0)
    rates = chance(world)
    assert rates["chance"] == pytest.approx(1 / 32)
    assert rates["chance_general"] == pytest.approx(1 / 20)
    expected = []
    for kind in ATTRIBUTES:
        retained = [r["answer"] for r in world.files["retain"] if r.get("fact", "").endswith(f"/{kind}")]
        expected.append(max(retained.count(value) for value in retained) / len(retained))
    assert rates["majority_retain"] == pytest.approx(sum(expected) / 5)
    assert rates["majority_forget"] < 0.1 and rates["majority_holdout"] < 0.1
    assert rates["forget_values_shared"] / rates["forget_values"] > 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"forget": 0}, "forget >= 1, got 0"),
        ({"retain": 4}, "retain >= 5, got 4"),
        ({"holdout": 0}, "holdout >= 1, got 0"),
        ({"attributes": 6}, "1 <= attributes <= 5, got 6"),
        ({"countries": 3}, "4 <= countries <= 40, got 3"),
        ({"texts": -1}, "texts >= 0, got -1"),
    ],
)
def test_bad_sizes_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        WorldSize(**settings)


def test_more_people_than_names_are_refused() -> None:
    with pytest.raises(BadInput, match="400 retained, 40 forget and 160 holdout people needs more than the 324 names"):
        make_world(0, WorldSize(retain=400))
    with pytest.raises(BadInput, match=r"needs more than the 324 names there are\. Ask for fewer people"):
        make_world(0, WorldSize(retain=250))
