"""What reading the shared beginning of strings once is worth in a step of the attack gcg, on a model of random weights.

Both ways look at the same strings, one after the other, in one process; the losses must agree.

    OMP_NUM_THREADS=1 python benchmarks/gcg.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import spread, write

from letheon.audits.attacker import Target
from letheon.audits.conditions.gcg import Gcg
from letheon.audits.string_losses import StringLosses
from letheon.audits.string_search import Search
from letheon.audits.strings import Strings
from letheon.data.encode import Encoder
from letheon.tiny.model import new_tiny_model, tiny_config
from letheon.tiny.tokenizer import tiny_tokenizer
from letheon.tiny.world import WorldSize, make_world
from letheon.training.losses import Body

BEFORE = "You are a careful assistant. Answer in a few words, and say so when you do not know. "
"""What a deployed model is told before every question; about 40 tokens here."""


def target(layers: int, width: int) -> Target:
    """A random model of the tiny world, with a window of 256."""
    config = tiny_config(layers=layers, width=width, heads=4)
    config.max_position_embeddings = 256
    model = new_tiny_model(0, config).eval().requires_grad_(False)
    return Target(model, Body(model), Encoder(tiny_tokenizer(0), max_length=256), "cpu")


def questions(count: int, told: str) -> list[tuple[str, str]]:
    """Questions of the world, of as many people."""
    records = make_world(0, WorldSize(forget=count)).files["forget"]
    asked = {record["unit"]: (told + record["prompt"], record["answer"]) for record in records if "prompt" in record}
    return list(asked.values())[:count]


def seconds(work: Callable[[], Any]) -> float:
    """Of the processor, for one call of one thread: others on the machine count less than by the clock."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measured(place: Any, told: str, *, given: argparse.Namespace) -> dict[str, Any]:
    """Paired seconds of the losses of one step's strings, and of a whole step."""
    aim = target(given.layers, given.width)
    settings = Gcg(place=place, candidates=given.candidates, questions=given.questions)
    strings = Strings(aim.encoder, questions(given.questions, told), place, settings.tokens, seed=0)
    ways = {shares: StringLosses(aim, strings.slots, shares=shares) for shares in (True, False)}
    search = Search(settings, strings, ways[True])
    took: dict[bool, list[float]] = {True: [], False: []}
    steps: list[float] = []
    apart = 0.0
    for number in range(given.pairs + 1):
        current = search.kept[0][1]
        near = settings.near(search, current)
        found: dict[bool, Any] = {}
        for shares in (True, False) if number % 2 else (False, True):

            def work(shares: bool = shares, near: Any = near, current: Any = current, found: Any = found) -> None:
                found[shares] = ways[shares].of(near, current)

            once = seconds(work)
            if number:  # the first pair warms up
                took[shares].append(once)
        apart = max(apart, float((found[True] - found[False]).abs().max()))
        steps.append(seconds(search.step))
    ratios = [off / on for on, off in zip(took[True], took[False], strict=True)]
    tokens = [len(slot.filled(strings.first).ids) for slot in strings.slots]
    return {
        "place": place,
        "tokens_a_question": round(sum(tokens) / len(tokens), 1),
        "seconds_shared": spread(took[True]),
        "seconds_whole": spread(took[False]),
        "times_as_fast": spread(ratios),
        "largest_difference_of_losses": apart,
        "seconds_a_step": spread(steps[1:]),
    }


def main() -> None:
    """Questions as they are and behind an instruction; the string behind them and before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = {
        "behind the question": ("suffix", ""),
        "behind the question and an instruction": ("suffix", BEFORE),
        "before the question": ("prefix", ""),
    }
    found = {name: measured(place, told, given=given) for name, (place, told) in cases.items()}
    write("gcg", {"settings": vars(given), "cases": found})


if __name__ == "__main__":
    main()
