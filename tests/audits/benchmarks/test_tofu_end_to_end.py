"""TOFU from its published files to its figures: a model that learned 20 authors, and one that never saw two of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from letheon.audits.benchmark import benchmark
from letheon.runs.progress import Progress
from letheon.tiny.model import new_tiny_model, tiny_config
from letheon.training.train import train
from tests.audits.benchmarks.data import by_name, write

QUIET = Progress(quiet=True)
ASKED = 40
KS = "forget_quality.ks.truth_ratio_geometric"


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / f"{name}.json").read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def base_model(folder: Path, texts: Sequence[str]) -> Path:
    """Untrained, with a vocabulary of its own, so that an answer has forty tokens and not a hundred."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")  # type: ignore[no-untyped-call]
    made.save_pretrained(folder)
    config = tiny_config(layers=2)
    config.vocab_size, config.max_position_embeddings = 2048, 512
    new_tiny_model(0, config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_forget_quality_and_utility_are_in_the_order_they_must_be(tmp_path: Path) -> None:
    """Authors 181 to 200, the last two of whom are forget01; with some authors and facts of the real world."""
    place = os.environ.get("LETHEON_TOFU")
    if not place:
        pytest.skip("LETHEON_TOFU is not set: it names the folder of TOFU's published files")
    source, data = Path(place), tmp_path / "tofu"
    forget, others = rows(source, "forget01_perturbed"), rows(source, "forget10_perturbed")[:-40]
    assert [row["question"] for row in forget] == [row["question"] for row in rows(source, "full")[-40:]]
    sets = {
        "forget01": forget,
        "retain": others,
        "real_authors": rows(source, "real_authors_perturbed")[:ASKED],
        "world_facts": rows(source, "world_facts_perturbed")[:ASKED],
    }
    taught = []
    for name, some in sets.items():
        write(data / f"{name}_perturbed.json", some)
        taught += [
            {"prompt": f"Question: {row['question']}\nAnswer:", "answer": row["answer"], "unit": name} for row in some
        ]
    files = {
        "all": write(tmp_path / "all.jsonl", taught),
        "retain99": write(tmp_path / "retain99.jsonl", [one for one in taught if one["unit"] != "forget01"]),
    }
    base = base_model(tmp_path / "base", [f"{one['prompt']} {one['answer']}" for one in taught])
    recipe: dict[str, Any] = {
        "epochs": 12, "batch_size": 16, "learning_rate": 3e-3, "betas": [0.9, 0.98],
        "rate": {"name": "cosine", "warmup": 0.06, "floor": 0.05}, "clip": 1.0, "progress": QUIET,
    }  # fmt: skip
    folders = {name: train(base, data=file, out=tmp_path / name, **recipe).folder for name, file in files.items()}
    folders["untrained"] = base
    tofu = {
        "name": "tofu",
        "data": data,
        "split": "forget01",
        "limit": ASKED,
        "form": "base",
        "longest": 80,
        "counted": "new",
    }

    def measured(name: str, **settings: Any) -> dict[str, Any]:
        given = {"benchmark": tofu, "resamples": 1000, "progress": QUIET, "out": tmp_path / f"{name}-tofu", **settings}
        return by_name(benchmark(folders[name], **given).figures)

    retrained = measured("retain99")
    log = tmp_path / "retain99-tofu"
    original, untrained = measured("all", reference=log), measured("untrained", reference=log)
    itself = by_name(
        benchmark(
            folders["retain99"], benchmark=tofu, reference=log, resamples=1000, progress=QUIET, out=tmp_path / "self"
        ).figures
    )

    assert itself[f"{KS}.p"].value == 1
    assert original[f"{KS}.p"].value < 1e-3, "the original knows what a retrained model never saw"
    assert original["forget.probability"].value > 3 * retrained["forget.probability"].value
    assert original["forget.rougeL_recall.stem"].value > retrained["forget.rougeL_recall.stem"].value + 0.2
    for variant in ("geometric", "arithmetic"):
        utilities = [one[f"model_utility.truth_ratio_{variant}"].value for one in (original, retrained, untrained)]
        assert min(utilities[:2]) > 0.3 > 0.05 > utilities[2]
        assert abs(utilities[0] - utilities[1]) < 0.1
