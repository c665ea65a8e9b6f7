"""Write TOFU, MUSE and the embedded world's questions as tasks of lm-evaluation-harness, for one model's tokenizer.

    OUT/letheon_tofu_forget10.yaml     the task: its class is letheon.audits.harness.plugin.LetheonTask
    OUT/letheon_tofu_forget10.jsonl    its questions: raw text, as in your copy of the data
Each question is what `letheon benchmark` asks with the same settings, proven token by token when it is written, and
again when lm_eval runs it. Written for one tokenizer: means a token are not to be had without counting them.

Source: this project.  Checked against: `letheon benchmark` and `lm_eval` on the same model, every number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from letheon.audits.benchmarks.muse import first_tokens
from letheon.audits.harness.pairs import Pair, as_pair, as_prompt, fingerprint
from letheon.data.encode import Encoder, Example
from letheon.data.records import MAX_SHOWN
from letheon.errors import BadInput, UnknownName
from letheon.methods import build_draft, describe, name_of
from letheon.models import load_tokenizer
from letheon.quantization.reading import inspect_any
from letheon.runs.folder import sha256_file, write_text
from letheon.training.prepare import collect

PLUGIN = "letheon.audits.harness.plugin.LetheonTask"
GREEDY: dict[str, Any] = {"until": [], "do_sample": False}
_TOFU = ("rougeL_recall.stem", "truth_ratio_geometric", "truth_ratio_arithmetic", "prob_mean.truth_ratio_geometric")
_MUSE = ("rougeL_f1.nostem", "rougeL_f1.stem.whole_reference")
LEFT_OUT = {
    "tofu": ("model_utility (a harmonic mean of nine numbers)", "forget_quality (compares with another model)"),
    "muse": ("privleak (needs the log-probability of every token)",),
    "people": (),
}
"""Benchmark -> what lm-evaluation-harness cannot say of it."""


@dataclass(frozen=True)
class Task:
    """One task: what it is called, and a row for each question."""

    name: str
    metrics: Mapping[str, bool | None]
    """Metric -> whether more is better for a model that has forgotten; None: as much as a retrained model."""
    docs: tuple[dict[str, Any], ...]
    ends: tuple[int, ...]
    """Tokens at which a greedy answer ends."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    folder: Path
    benchmark: str
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    """What of the benchmark lm-evaluation-harness cannot say, and why."""


def write_tasks(model: Path | str, benchmark: Any, out: Path | str) -> Written:
    """Write a benchmark's questions as tasks of lm-evaluation-harness.

    Args:
        model: a model folder; its tokenizer and its context window count.
        benchmark: tofu, muse or people with its settings, as `letheon benchmark` takes it.
        out: a folder; tasks of other benchmarks in it stay.
    Raises:
        BadInput: with all faults of the model and the data; a question that lm-evaluation-harness would encode to
            other tokens.
    """
    name = benchmark if isinstance(benchmark, str) else getattr(benchmark, "get", lambda _: None)("name")
    if isinstance(name, str) and name not in _MAKERS:
        raise UnknownName(
            name, _MAKERS, what="a benchmark that can be written as tasks", remedy="lm_eval has WMDP of its own"
        )

    def read() -> tuple[Any, Any]:
        made = build_draft("benchmark", benchmark, where="benchmark").checked()
        return made, made.read()

    folder, (method, rows) = collect(lambda: inspect_any(Path(model)), read)
    if name_of(method) not in _MAKERS:
        raise UnknownName(name_of(method), _MAKERS, what="a benchmark that can be written as tasks")
    encoder = Encoder(load_tokenizer(folder.path), max_length=folder.window)
    tasks = list(_MAKERS[name_of(method)](method, rows, method.pose(rows, encoder), encoder))
    left_out = list(LEFT_OUT[name_of(method)])
    if any("accuracy" not in task.metrics for task in tasks if task.docs[0]["measure"] == "people.answers"):
        left_out.append("accuracy (this chat template ends in white space, which would have to be said as well)")
    settings = describe(method)
    for task in tasks:
        _write(task, Path(out), encoder, Path(model), settings)
    return Written(Path(out), name_of(method), tuple(task.name for task in tasks), tuple(left_out))


def _write(task: Task, out: Path, encoder: Encoder, model: Path, settings: Mapping[str, Any]) -> None:
    data = out / f"{task.name}.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    write_text(data, "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in task.docs))
    says = any(doc["room"] for doc in task.docs)
    benchmark = str(settings["name"])
    config = {
        "task": task.name,
        "tag": ["letheon", f"letheon_{benchmark}"],
        "output_type": "generate_until" if says else "loglikelihood",
        **({"generation_kwargs": GREEDY} if says else {}),
        "test_split": "test",
        "doc_to_text": "context",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": better}
            for metric, better in task.metrics.items()
        ],
        "metadata": {
            "version": 1.0,
            "letheon": {
                "data": data.name,
                "sha256": sha256_file(data),
                "tokens": fingerprint(encoder.tokenizer, task.docs),
                "longest": max(doc["length"] for doc in task.docs),
                "ends": list(task.ends),
                "written_for": str(model),
                "settings": json.loads(json.dumps(settings, default=str)),
            },
        },
    }
    head = f"# Written by letheon harness; write it again rather than change it.\nclass: !function {PLUGIN}\n"
    write_text(out / f"{task.name}.yaml", head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


# --- the benchmarks


def _tofu(method: Any, rows: Mapping[str, Any], posed: Mapping[str, Any], encoder: Encoder) -> Iterable[Task]:
    problems: list[str] = []
    for name, one in posed.items():
        measure = {"forget": "tofu.forget", "retain": "tofu.retain"}.get(name, "tofu.general")
        probability = "probability_normalised" if measure == "tofu.general" else "probability"
        wrong = iter(one.wrong.examples)
        docs = []
        for at, item in enumerate(one.items):
            answer = one.answer.examples[at]
            examples = [answer, one.right.examples[at], *(next(wrong) for _ in range(one.wrong_counts[at]))]
            room = min(method.longest - (len(answer.prompt_ids) if method.counted == "total" else 0), method.longest)
            room = min(room, encoder.max_length - len(answer.prompt_ids))
            docs += _docs(encoder, item, measure, examples, one.answer.answers[at], problems, room=room)
        better = (False, None, None, None) if name == "forget" else (True, True, True, True)
        metrics = {probability: name != "forget", **dict(zip(_TOFU, better, strict=True))}
        ends = sorted({encoder.eos, *(example.ids[-1] for example in one.answer.examples)})
        yield Task(f"letheon_tofu_{method.split if name == 'forget' else name}", metrics, tuple(docs), tuple(ends))
    _refuse(problems)


def _muse(method: Any, rows: Mapping[str, Any], posed: Mapping[str, Any], encoder: Encoder) -> Iterable[Task]:
    problems: list[str] = []
    for name in ("verbmem", "knowmem", "utility"):
        one, docs = posed[name], []
        is_verbatim = name == "verbmem"
        room = method.verbatim_tokens if is_verbatim else method.answer_tokens
        for item, ids, whole in zip(one.items, one.ids, one.answers, strict=True):
            answer = first_tokens(encoder.tokenizer, whole, room) if is_verbatim else whole
            prompt = Example(ids, len(ids))
            measure = "muse.verbatim" if is_verbatim else "muse.answers"
            docs += _docs(encoder, item, measure, [], answer, problems, room=room, prompt=prompt, whole=whole)
        better = dict.fromkeys(_MUSE, name == "utility")
        yield Task(f"letheon_muse_{name}", better, tuple(docs), (encoder.eos,))
    _refuse(problems)


def _people(method: Any, rows: Mapping[str, Any], posed: Mapping[str, Any], encoder: Encoder) -> Iterable[Task]:
    problems: list[str] = []
    better = {"forget": None, "holdout": None, "retain": True, "general": True}
    for name, one in posed.items():
        measure = "people.choice" if name.endswith("_choice") else "people.answers"
        examples, docs = iter(one.examples), []
        for item, count in zip(one.items, one.counts, strict=True):
            docs += _docs(encoder, item, measure, [next(examples) for _ in range(count)], "", problems)
        metrics = ["choice"] if measure == "people.choice" else ["accuracy", "probability"]
        if any(doc["space"] for doc in docs) and "accuracy" in metrics:
            metrics.remove("accuracy")
        yield Task(
            f"letheon_people_{name}", dict.fromkeys(metrics, better[name.split("_")[0]]), tuple(docs), (encoder.eos,)
        )
    _refuse(problems)


_MAKERS: dict[str, Callable[[Any, Mapping[str, Any], Mapping[str, Any], Encoder], Iterable[Task]]] = {
    "tofu": _tofu,
    "muse": _muse,
    "people": _people,
}


def _docs(
    encoder: Encoder,
    item: str,
    measure: str,
    examples: list[Example],
    answer: str,
    problems: list[str],
    *,
    room: int = 0,
    prompt: Example | None = None,
    whole: str = "",
) -> list[dict[str, Any]]:
    """The row of a question, or a fault and no row.

    Args:
        encoder: of the model.
        item: its name.
        measure: a key of `scores.MEASURES`.
        examples: its answers, all behind the same prompt.
        answer: what a greedy answer is compared with.
        problems: faults are added to it.
        room: most tokens of a greedy answer; 0: none is asked for.
        prompt: what is continued, where there are no examples.
        whole: the uncut answer, where `answer` is a part of it.
    """
    asked = prompt or examples[0]
    try:
        pairs: list[Pair] = [as_pair(encoder.tokenizer, example) for example in examples]
        context = as_prompt(encoder.tokenizer, asked.prompt_ids) if room else pairs[0].context
        if any(pair.context != context for pair in pairs):
            raise BadInput("its answers stand behind prompts of different tokens, and lm-evaluation-harness has one")
    except BadInput as error:
        problems += [f"{item}: {problem}" for problem in error.problems]
        return []
    length = max([len(example.ids) for example in examples] + [len(asked.prompt_ids) + room])
    return [
        {
            "item": item,
            "measure": measure,
            "context": context,
            "continuations": [pair.continuation for pair in pairs],
            "tokens": [pair.tokens for pair in pairs],
            "space": pairs[0].space if pairs else "",
            "room": room,
            "length": length,
            "answer": answer,
            "whole": whole,
        }
    ]


def _refuse(problems: list[str]) -> None:
    if problems:
        hidden = len(problems) - MAX_SHOWN
        raise BadInput(problems[:MAX_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []))
