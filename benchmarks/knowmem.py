"""MUSE's questions behind ten answered ones: the common beginning read once, against reading every prompt by itself.

The first way is how MUSE's own script does it: one prompt at a time, from its first token, with a cache within the
prompt. The second is `Scorer.continuations`: whole prompts in padded batches. The third is what `letheon benchmark`
does. All three must say the same words. The model is random and says up to 32 tokens of every answer.

    OMP_NUM_THREADS=1 python benchmarks/knowmem.py
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import spread, write
from transformers import GenerationConfig

from letheon.audits.benchmarks.muse import answered_before
from letheon.audits.scorer import Scorer
from letheon.audits.shared_prefix import common_prefix, continuations
from letheon.data.encode import Encoder
from letheon.tiny.model import new_tiny_model, tiny_config
from letheon.tiny.tokenizer import tiny_tokenizer
from letheon.tiny.world import make_world
from letheon.training.losses import Body

NEW_TOKENS = 32


def prompts(encoder: Encoder, count: int, shown: int) -> list[list[int]]:
    """Questions of an invented world behind `shown` answered ones, in MUSE's form."""
    world = make_world(0)
    asked = [record for record in world.files["forget"] if "prompt" in record]
    random.Random(0).shuffle(asked)
    rows = [{"question": record["prompt"], "answer": record["answer"]} for record in asked]
    before = answered_before(rows[:shown])
    return [encoder.prompt_ids(f"{before}Question: {row['question']}\nAnswer: ") for row in rows[shown : shown + count]]


@torch.no_grad()
def one_by_one(scorer: Scorer, given: list[list[int]]) -> list[str]:
    """Every prompt by itself, from its first token."""
    said = []
    for ids in given:
        made: Any = scorer.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            generation_config=GenerationConfig(
                max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=scorer.encoder.eos
            ),
        )
        said.append(scorer.encoder.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
    return said


def main() -> None:
    """Time the three ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--shown", type=int, default=10)
    options = parser.parse_args()
    config = tiny_config(layers=4, width=256, heads=4)
    config.max_position_embeddings = 1024
    model = new_tiny_model(0, config).eval()
    encoder = Encoder(tiny_tokenizer(0), max_length=1024)
    scorer = Scorer(model, Body(model), encoder, "cpu")
    given = prompts(encoder, options.questions, options.shown)
    ways: dict[str, Callable[[], list[str]]] = {
        "one_by_one": lambda: one_by_one(scorer, given),
        "whole_prompts_in_batches": lambda: scorer.continuations(given, [NEW_TOKENS] * len(given)),
        "beginning_once": lambda: continuations(scorer, given, NEW_TOKENS),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    said: dict[str, list[str]] = {}
    for _ in range(options.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            said[name] = [text.strip() for text in way()]
            times[name].append(time.perf_counter() - began)
    ratios = {
        name: [slow / fast for slow, fast in zip(times[name], times["beginning_once"], strict=True)]
        for name in list(ways)[:2]
    }
    write(
        "knowmem",
        {
            "repeats": options.repeats,
            "questions": len(given),
            "tokens_of_a_prompt": round(sum(map(len, given)) / len(given), 1),
            "tokens_in_common": common_prefix(given),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "answers_alike": {
                name: sum(a == b for a, b in zip(said[name], said["one_by_one"], strict=True)) for name in ways
            },
            "seconds": {name: spread(values) for name, values in times.items()},
            "times_as_fast": {name: spread(values) for name, values in ratios.items()},
        },
    )


if __name__ == "__main__":
    main()
