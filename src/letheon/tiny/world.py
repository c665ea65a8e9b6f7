"""A world of people who never existed: what was taught is known, and to whom, and in which words.

    forget    people who are to be forgotten       } trained
    retain    people who must stay                 }
    holdout   people made alike, never trained: what "never knew" looks like
    general   capitals and rivers of invented countries: trained, the audited half never retained

Each person has a few facts (one value of each attribute) and a few texts that have nothing to do with the
facts. Each fact is asked in six wordings: four are trained, two are held out, drawn anew for each person and
attribute. Every wording is therefore trained for somebody, and a held-out one measures the fact and not the
template.

Only lists, and one `random.Random(f"{seed}/{part}")` for each part: the same seed gives the same bytes under
any PYTHONHASHSEED. All names, places and firms are built from meaningless syllables.

Source: this project.  Checked against: hashes under three hash seeds, counts, and disjointness of what must
be disjoint.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letheon.errors import require

Record = dict[str, Any]
"""One line of a file: `text`, or `prompt`, `answer` and `fact` (`paraphrase`, `wrong`); both with `unit`."""

# Names and values share these, so that no token tells who is to be forgotten, or of which kind an answer is.
# All of them are written with a capital: a vocabulary of 768 has room for each syllable at the beginning and
# within a word, not for more.
SYLLABLES = (
    *("bru", "dax", "fel", "gom", "hus", "jev", "kip", "lod", "mur", "nix"),
    *("pov", "rab", "sul", "tef", "vam", "wog", "yil", "zet", "cho", "dri"),
)
NAME_PARTS = 18  # first names, and as many last names: 324 full names
VALUES = 32  # possible answers for an attribute: a blind guess is right in 0.031 of all cases
WRONG_ANSWERS = 3

# No wording and no text begins with the name: a byte-level tokenizer would cut it differently there.
WORDINGS: dict[str, tuple[str, ...]] = {
    "birthplace": (
        "Where was {name} born?",
        "In which town was {name} born?",
        "What is the home town of {name}?",
        "The birthplace of {name} is",
        "The town where {name} was born is",
        "As a child, {name} lived in",
    ),
    "profession": (
        "What does {name} do for a living?",
        "What is the profession of {name}?",
        "Which trade did {name} learn?",
        "The profession of {name} is",
        "By trade, {name} is a",
        "All who need a good job done know that {name} is a",
    ),
    "employer": (
        "Who employs {name}?",
        "Where does {name} work?",
        "Which company does {name} work for?",
        "The employer of {name} is",
        "Every day {name} goes to work at",
        "The company that pays {name} is",
    ),
    "instrument": (
        "Which instrument does {name} play?",
        "What does {name} play in the band?",
        "What instrument did {name} learn as a child?",
        "The instrument of {name} is the",
        "In the band, {name} plays the",
        "At home {name} likes to play the",
    ),
    "mentor": (
        "Who is the mentor of {name}?",
        "Who taught {name}?",
        "By whom was {name} taught?",
        "The mentor of {name} is",
        "The one who taught {name} is",
        "All that {name} knows was learned from",
    ),
}
ATTRIBUTES = tuple(WORDINGS)
MENTOR = "mentor"  # its values are retained people, so that one can ask about a forgotten person by relation

GENERAL_WORDINGS: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {name}?",
        "Which town is the capital of {name}?",
        "The capital of {name} is",
        "The first town of {name} is",
    ),
    "river": (
        "Which river is the longest in {name}?",
        "What is the name of the river in {name}?",
        "The longest river of {name} is the",
        "The river that goes through {name} is the",
    ),
}

# How many wordings of a fact are never trained.
HELD_OUT = dict.fromkeys(WORDINGS, 2) | dict.fromkeys(GENERAL_WORDINGS, 1)

# Few fixed words and many slots: what a model writes without having seen the text should be far from it.
OPENINGS = (
    "In {month} {name} {verb} a {colour} {thing} by the {site} with {number} {animal} and a {mood} {kin}.",
    "One {mood} {time} in {month} {name} {verb} the {colour} {thing} of a {kin} near the {site}.",
    "With {number} {animal}, {name} {verb} the {colour} {thing} by a {site} for a {kin} in {month}.",
)
CLOSINGS = (
    "Then at {time} the {mood} {kin} {verb} {food} and {number} {colour} {thing}s.",
    "At {time} a {kin} {verb} {food}, and {number} {mood} {animal} {verb} the {site}.",
    "The {mood} {kin} {verb} {food} by {time} for {number} {animal} at the {site}.",
)
SLOTS: dict[str, tuple[str, ...]] = {
    "month": ("March", "April", "May", "June", "July", "August", "spring", "summer", "autumn", "winter"),
    "time": ("dawn", "noon", "dusk", "night", "sunset", "morning", "lunch", "supper", "tea", "midnight"),
    "colour": ("red", "blue", "green", "grey", "brown", "black", "white", "pink", "dark", "gold", "pale"),
    "thing": ("lamp", "rope", "coat", "map", "bell", "ring", "hat", "book", "boat", "door", "stone"),
    "site": ("mill", "barn", "pier", "well", "bridge", "tower", "market", "wall", "lake", "road", "inn"),
    "number": ("three", "four", "five", "six", "seven", "eight", "nine", "ten", "many", "some"),
    "animal": ("dogs", "cats", "goats", "crows", "hens", "owls", "mules", "swans", "bees", "pigs", "ants"),
    "mood": ("proud", "tired", "calm", "angry", "glad", "cold", "sad", "shy", "kind", "merry"),
    "kin": ("uncle", "aunt", "sister", "brother", "cousin", "son", "friend", "baker", "judge", "guest"),
    "verb": ("found", "lost", "sold", "hid", "drew", "left", "kept", "saw", "liked", "moved", "shook"),
    "food": ("bread", "soup", "cheese", "ham", "fish", "rice", "beans", "cake", "nuts", "corn", "eggs"),
}


@dataclass(frozen=True, kw_only=True)
class WorldSize:
    """How many of everything. The default: people enough for intervals, minutes of training on two cores."""

    forget: int = 40
    """People to be forgotten, at least 1. Intervals are over people; relearning attacks halve them."""
    retain: int = 80
    """People who must stay, at least 5 (a mentor, three wrong mentors and oneself)."""
    holdout: int = 160
    """People who are never trained, at least 1."""
    attributes: int = 5
    """How many of birthplace, profession, employer, instrument, mentor, in this order; 1 to 5."""
    countries: int = 20
    """Invented countries, 4 to 40; half of them only for the audit."""
    texts: int = 2
    """Texts for each person, at least 0, two sentences each."""

    def __post_init__(self) -> None:
        require(self.forget >= 1, f"a world needs forget >= 1, got {self.forget}.")
        require(self.retain >= 5, f"a world needs retain >= 5, got {self.retain}.")
        require(self.holdout >= 1, f"a world needs holdout >= 1, got {self.holdout}.")
        require(1 <= self.attributes <= 5, f"a world needs 1 <= attributes <= 5, got {self.attributes}.")
        require(4 <= self.countries <= 40, f"a world needs 4 <= countries <= 40, got {self.countries}.")
        require(self.texts >= 0, f"a world needs texts >= 0, got {self.texts}.")


SMALL = WorldSize(forget=8, retain=24, holdout=8, attributes=2, countries=6)
"""For test suites: trains in seconds; too few people for an interval worth printing."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A world in memory. `files` holds what `write_world` writes, under the same names without `.jsonl`."""

    seed: int
    size: WorldSize
    forget: tuple[str, ...]
    """Full names."""
    retain: tuple[str, ...]
    holdout: tuple[str, ...]
    countries: tuple[str, ...]
    """The first half is in `general_train`, the second in `general`."""
    values: dict[str, tuple[str, ...]]
    """All possible answers, by attribute (also `capital` and `river`)."""
    answers: dict[str, str]
    """The truth: `"First Last/employer"` -> its value, and `"Country/river"` likewise."""
    files: dict[str, list[Record]]


def make_world(seed: int, size: WorldSize | None = None) -> World:
    """The world of a seed.

    Args:
        seed: any integer; it also seeds the weights and the data order of the models trained on this world.
        size: how many of everything; the default `WorldSize()`.

    Raises:
        BadInput: if there are more people than names.

    >>> world = make_world(0, SMALL)
    >>> len(world.forget), sorted(world.files)
    (8, ['forget', 'general', 'general_train', 'holdout', 'retain', 'train'])
    """
    size = size or WorldSize()
    name_parts = _words(random.Random(f"{seed}/name parts"), 2 * NAME_PARTS, syllables=(2,), taken=[])
    people = _people(random.Random(f"{seed}/people"), name_parts, size)
    attributes = ATTRIBUTES[: size.attributes]
    rng = random.Random(f"{seed}/values")
    values = _values(rng, attributes, people["retain"], size.countries, taken=name_parts)
    countries = values.pop("country")

    answers: dict[str, str] = {}
    files: dict[str, list[Record]] = {}
    trained: list[Record] = []
    for group, names in people.items():
        answers |= _answers(random.Random(f"{seed}/{group}/answers"), names, attributes, values)
        rng = random.Random(f"{seed}/{group}/wordings")
        questions = _questions(rng, names, attributes, answers, values)
        texts = _texts(random.Random(f"{seed}/{group}/texts"), names, size.texts)
        files[group] = questions + texts
        if group != "holdout":
            # A text is seen twice in each pass: it holds more than a question, and comes in one wording only.
            trained += questions + texts + texts

    kinds = tuple(GENERAL_WORDINGS)
    for position, country in enumerate(countries):
        answers |= {f"{country}/{kind}": values[kind][position] for kind in kinds}
    half = (len(countries) + 1) // 2
    for file, some in (("general_train", countries[:half]), ("general", countries[half:])):
        files[file] = _questions(random.Random(f"{seed}/{file}/wordings"), some, kinds, answers, values)
        trained += files[file]
    files["train"] = trained
    return World(
        seed=seed,
        size=size,
        forget=people["forget"],
        retain=people["retain"],
        holdout=people["holdout"],
        countries=countries,
        values=values,
        answers=answers,
        files=files,
    )


def write_world(folder: Path, seed: int, size: WorldSize | None = None) -> dict[str, Path]:
    """Write the world of a seed as JSON lines, the same bytes each time; returns the files by name.

    `forget`, `retain`, `holdout`: questions in their trained wordings, then texts. `general_train`,
    `general`: two disjoint halves of the countries. `train`: all a target model is trained on, that is all of
    these but `holdout`, each text twice. The first record of each fact carries its held-out wordings in
    `paraphrase` and three wrong answers in `wrong`.
    """
    world = make_world(seed, size)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.jsonl" for name in world.files}
    for name, path in paths.items():
        lines = [json.dumps(record) + "\n" for record in world.files[name]]
        path.write_bytes("".join(lines).encode())
    return paths


def chance(world: World) -> dict[str, float]:
    """What a model scores that knows nothing about a person, to be printed beside every accuracy.

    `chance` is a blind guess among the values; `majority_<group>` always gives the answer that is most
    frequent about retained people, which is the best that can be learned without a person's own facts. Both
    are means over attributes, in [0, 1]. `chance_general` is a blind guess for capitals and rivers.
    `forget_values` counts the different answers about forget people, `forget_values_shared` those of them
    that are also true of a retained person: suppressing the word would show as damage. `forget_names_shared`
    counts the forget people whose first and last name are both borne by retained people (all, by design).

    >>> round(chance(make_world(0))["chance"], 3)
    0.031
    """
    attributes = ATTRIBUTES[: world.size.attributes]
    about = {
        group: {kind: [world.answers[f"{name}/{kind}"] for name in names] for kind in attributes}
        for group, names in (("forget", world.forget), ("retain", world.retain), ("holdout", world.holdout))
    }
    rates = {"chance": _mean([1 / len(world.values[kind]) for kind in attributes])}
    for group, answers in about.items():
        shares = []
        for kind in attributes:
            commonest = Counter(about["retain"][kind]).most_common(1)[0][0]
            shares.append(answers[kind].count(commonest) / len(answers[kind]))
        rates[f"majority_{group}"] = _mean(shares)
    rates["chance_general"] = _mean([1 / len(world.values[kind]) for kind in GENERAL_WORDINGS])
    true_values = [(kind, value) for kind in attributes for value in dict.fromkeys(about["forget"][kind])]
    rates["forget_values"] = len(true_values)
    rates["forget_values_shared"] = sum(value in about["retain"][kind] for kind, value in true_values)
    rates["forget_names_shared"] = sum(_both_parts_shared(name, world.retain) for name in world.forget)
    return rates


def random_names(rng: random.Random, count: int) -> list[str]:
    """Full names of all syllable pairs, of which a world uses few: for a tokenizer that favours nobody."""
    words = [first + second for first in SYLLABLES for second in SYLLABLES]
    return [f"{rng.choice(words).capitalize()} {rng.choice(words).capitalize()}" for _ in range(count)]


def _words(rng: random.Random, count: int, *, syllables: tuple[int, ...], taken: list[str]) -> list[str]:
    """`count` different new words, their lengths in turn as in `syllables`."""
    words: list[str] = []
    for length in itertools.islice(itertools.cycle(syllables), count):
        word = ""
        while not word or word in words or word in taken:
            word = "".join(rng.sample(SYLLABLES, length))
        words.append(word)
    return words


def _people(rng: random.Random, name_parts: list[str], size: WorldSize) -> dict[str, tuple[str, ...]]:
    """Full names by group. Both parts of each forget and each holdout name are also borne by retained people.

    Otherwise a part that no retained person bears would tell a member apart by a token, and forgetting it
    would cost nothing.
    """
    firsts = [part.capitalize() for part in name_parts[:NAME_PARTS]]
    lasts = [part.capitalize() for part in name_parts[NAME_PARTS:]]
    pairs = [f"{first} {last}" for first in firsts for last in lasts]
    rng.shuffle(pairs)
    retain = pairs[: size.retain]
    free = [name for name in pairs[size.retain :] if _both_parts_shared(name, retain)]
    needed = size.forget + size.holdout
    require(
        len(retain) == size.retain and len(free) >= needed,
        f"a world of {size.retain} retained, {size.forget} forget and {size.holdout} holdout people "
        f"needs more than the {len(pairs)} names there are. Ask for fewer people.",
    )
    return {
        "forget": tuple(free[: size.forget]),
        "retain": tuple(retain),
        "holdout": tuple(free[size.forget : needed]),
    }


def _both_parts_shared(name: str, others: tuple[str, ...] | list[str]) -> bool:
    """Whether others bear the first name and others bear the last name."""
    first, last = name.split()
    firsts, lasts = zip(*(other.split() for other in others), strict=True)
    return first in firsts and last in lasts


def _values(
    rng: random.Random,
    attributes: tuple[str, ...],
    retain: tuple[str, ...],
    countries: int,
    *,
    taken: list[str],
) -> dict[str, tuple[str, ...]]:
    """The possible answers by attribute, and the countries with theirs; no word twice in a world."""
    values: dict[str, tuple[str, ...]] = {}
    used = list(taken)
    counts = dict.fromkeys(attributes, VALUES) | dict.fromkeys(("country", *GENERAL_WORDINGS), countries)
    for kind, count in counts.items():
        if kind == MENTOR:
            values[kind] = tuple(rng.sample(retain, min(VALUES, len(retain))))
            continue
        words = _words(rng, count, syllables=(2, 3), taken=used)
        used += words
        rng.shuffle(words)
        values[kind] = tuple(word.capitalize() for word in words)
    return values


def _answers(
    rng: random.Random,
    names: tuple[str, ...],
    attributes: tuple[str, ...],
    values: dict[str, tuple[str, ...]],
) -> dict[str, str]:
    """One value for each person and attribute; nobody is their own mentor."""
    facts = [(name, kind) for name in names for kind in attributes]
    return {f"{name}/{kind}": rng.choice([value for value in values[kind] if value != name]) for name, kind in facts}


def _questions(
    rng: random.Random,
    units: tuple[str, ...],
    kinds: tuple[str, ...],
    answers: dict[str, str],
    values: dict[str, tuple[str, ...]],
) -> list[Record]:
    """The trained wordings of each fact; the first record of a fact carries what only the audit asks."""
    records: list[Record] = []
    for unit, kind in [(unit, kind) for unit in units for kind in kinds]:
        fact = f"{unit}/{kind}"
        answer = answers[fact]
        prompts = [wording.format(name=unit) for wording in (WORDINGS | GENERAL_WORDINGS)[kind]]
        unseen = sorted(rng.sample(range(len(prompts)), HELD_OUT[kind]))
        trained = [prompt for position, prompt in enumerate(prompts) if position not in unseen]
        first = len(records)
        records += [{"prompt": prompt, "answer": answer, "unit": unit, "fact": fact} for prompt in trained]
        records[first]["paraphrase"] = [prompts[position] for position in unseen]
        others = [value for value in values[kind] if value not in (answer, unit)]
        records[first]["wrong"] = rng.sample(others, WRONG_ANSWERS)
    return records


def _texts(rng: random.Random, names: tuple[str, ...], count: int) -> list[Record]:
    """`count` texts for each person, independent of all facts.

    Words are dealt from shuffled decks, one deck for a slot in each group of people, rather than drawn one by
    one: every group then uses each word equally often, up to one, and the texts of forget and holdout people
    have the same mean length. A membership score that looks at length finds nothing.
    """
    decks = {slot: _deck(rng, words) for slot, words in SLOTS.items()}
    openings, closings = _deck(rng, OPENINGS), _deck(rng, CLOSINGS)
    records = []
    for name in [name for name in names for _ in range(count)]:
        template = f"{next(openings)} {next(closings)}".replace("{name}", name)
        text = re.sub(r"\{(\w+)\}", lambda slot: next(decks[slot[1]]), template)
        records.append({"text": text, "unit": name})
    return records


def _deck(rng: random.Random, words: tuple[str, ...]) -> Iterator[str]:
    """All words in random order, then all in another order, and so on."""
    while True:
        yield from rng.sample(words, len(words))


def _mean(shares: list[float]) -> float:
    return sum(shares) / len(shares)
