"""A few tasks of lm-evaluation-harness over local files: choices, words, texts, and faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.audits.benchmarks.data import WORDS, write


def _task(folder: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> None:
    data = write(folder / f"{name}.jsonl", rows)
    given = {"task": name, "tag": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
    write_yaml(folder / f"{name}.yaml", {**given, "test_split": "test", **config})


def write_yaml(path: Path, config: dict[str, Any], head: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def own_tasks(folder: Path) -> Path:
    """own_choice (acc, acc_norm, mcc), own_said (exact_match, one example shown), own_text (three perplexities)."""
    colours = [
        {
            "question": f"What is the hat number {at} of Ann?",
            "choices": [f"It is a {WORDS[(at + by) % 12]} hat." for by in range(3)],
            "right": at % 3,
        }
        for at in range(9)
    ]
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    mcc = {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}
    _task(
        folder,
        "own_choice",
        colours,
        output_type="multiple_choice",
        doc_to_text="question",
        doc_to_choice="choices",
        doc_to_target="right",
        metric_list=[*metrics, mcc],
    )
    said = [{"question": row["question"], "answer": f" {row['choices'][row['right']]}"} for row in colours[:6]]
    _task(
        folder,
        "own_said",
        said,
        output_type="generate_until",
        fewshot_split="test",
        num_fewshot=1,
        doc_to_text="question",
        doc_to_target="answer",
        target_delimiter="",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    texts = [{"text": f"Ann saw {at} dogs and the {WORDS[at]} cat. " * (at + 1)} for at in range(5)]
    perplexities = {"word_perplexity": "weighted_perplexity", "bits_per_byte": "bits_per_byte"}
    _task(
        folder,
        "own_text",
        texts,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        metric_list=[
            {"metric": name, "aggregation": how, "higher_is_better": False} for name, how in perplexities.items()
        ],
    )
    return folder
