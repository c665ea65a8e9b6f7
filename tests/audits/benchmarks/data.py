"""Small copies of the published files, made of nothing: their forms, not their content."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from letheon.audits.scorer import Scorer
from letheon.data.encode import Encoder
from letheon.training.losses import Body
from tests.toys import llama, tokenizer

WORDS = ("red", "blue", "green", "grey", "brown", "black", "white", "pink", "dark", "gold", "pale", "old")


def write(path: Path, rows: Sequence[Any], *, as_array: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(list(rows)) if as_array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def tofu_rows(name: str, count: int, *, wrong: int, is_paraphrased: bool) -> list[dict[str, Any]]:
    rows = []
    for at in range(count):
        colour = WORDS[at % len(WORDS)]
        row: dict[str, Any] = {
            "question": f"What is the hat number {at} of {name}?",
            "answer": f"It is a {colour} hat.",
            "perturbed_answer": [f"It is a {WORDS[(at + by) % len(WORDS)]} hat." for by in range(1, wrong + 1)],
        }
        if is_paraphrased:
            row["paraphrased_answer"] = f"The hat is {colour}."
        rows.append(row)
    return rows


def tofu_files(folder: Path, *, forget: int = 60, other: int = 60, split: str = "forget01") -> Path:
    write(folder / f"{split}_perturbed.json", tofu_rows("Ann", forget, wrong=5, is_paraphrased=True))
    write(folder / "retain_perturbed.json", tofu_rows("Bo", other, wrong=5, is_paraphrased=True))
    for name in ("real_authors", "world_facts"):
        write(folder / f"{name}_perturbed.json", tofu_rows(name, 7, wrong=3, is_paraphrased=False), as_array=True)
    return folder


def muse_files(folder: Path, *, questions: int = 6, shown: int = 10, texts: int = 5, as_array: bool = True) -> Path:
    def put(name: str, rows: Sequence[Any]) -> None:
        write(folder / f"{name}.json", rows, as_array=as_array)

    put(
        "verbmem/forget",
        [{"prompt": f"One {colour} day", "gt": f"the {colour} cat ran home over the hill"} for colour in WORDS[:4]],
    )
    for part, name in (("forget", "Ann"), ("retain", "Bo")):
        pairs = [{"question": f"Hat {at} of {name}?", "answer": WORDS[at % 12]} for at in range(questions + shown)]
        put(f"knowmem/{part}_qa", pairs[:questions])
        put(f"knowmem/{part}_qa_icl", pairs[questions:])
    for part, name in (("forget", "Ann"), ("holdout", "Cem")):
        put(
            f"privleak/{part}",
            [f"{name} saw the {WORDS[at % 12]} cat and {at} dogs by the mill." for at in range(texts)],
        )
    return folder


def choices_file(path: Path, count: int = 8, *, as_array: bool = False) -> Path:
    rows = [
        {
            "question": f"Which hat is number {at}?",
            "choices": [f"the {WORDS[(at + by) % 12]} one" for by in range(4)],
            "answer": at % 4,
        }
        for at in range(count)
    ]
    return write(path, rows, as_array=as_array)


def model_folder(folder: Path, *, seed: int = 0, window: int = 512, model: Any = None, **changes: Any) -> Path:
    """A saved random model, with a window wide enough for ten answered questions."""
    made = model or llama(seed, max_position_embeddings=window, **changes)
    made.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def scorer(model: Any = None, *, window: int = 512, coder: Encoder | None = None) -> Scorer:
    made = model if model is not None else llama(3, max_position_embeddings=window)
    return Scorer(made, Body(made), coder or Encoder(tokenizer(), max_length=window), "cpu")


def by_name(figures: Sequence[Any]) -> dict[str, Any]:
    found: Mapping[str, Any] = {figure.name: figure for figure in figures}
    assert len(found) == len(figures)
    return dict(found)


@cache
def _letter_tokenizer() -> Any:
    made = tokenizer()
    made.add_tokens([f" {letter}" for letter in "ABCD"])
    return made


def letter_tokenizer() -> Any:
    """The tiny tokenizer in which " A" to " D" are one token each."""
    return copy.deepcopy(_letter_tokenizer())


def taught(texts: Sequence[str], *, seed: int = 7, steps: int = 60, window: int = 512) -> Any:
    """A small model that has seen these texts, so that what it says scores more than 0."""
    model = llama(seed, max_position_embeddings=window)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids = [[*tokenizer().encode(text), 1] for text in texts]
    width = max(map(len, ids))
    batch = torch.tensor([[*one, *[0] * (width - len(one))] for one in ids])
    labels = batch.masked_fill(batch == 0, -100)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=batch, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()
