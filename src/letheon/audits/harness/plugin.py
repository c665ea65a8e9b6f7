"""What lm-evaluation-harness loads for a task that `letheon harness` has written: `class: !function ...LetheonTask`.

It asks the requests that stand in the task's file and counts them by `scores`. Before anything is asked it encodes all
of them with the tokenizer of the model that is run, and refuses what would give another number under the same name:
another tokenizer, a shorter window, a chat template around prompts that have theirs, changed generation settings.

Source: lm-evaluation-harness 0.4.13 (ConfigurableTask).
Checked against: `letheon benchmark` on the same model; one test for each refusal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from letheon.audits.harness.pairs import fingerprint
from letheon.audits.harness.scores import item_scores
from letheon.audits.harness.tasks import GREEDY
from letheon.errors import BadInput
from letheon.models import load_tokenizer
from letheon.quantization.reading import inspect_any
from letheon.runs.folder import sha256_file

NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Settings of generation that a model's folder may bring along, and that an audit of its weights does not use."""
HARMLESS = frozenset(
    {*NEUTRAL, "do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
    | {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "max_length",
        "max_new_tokens",
        "use_cache",
        "cache_implementation",
    }
    | {"transformers_version", "_from_model_config", "output_attentions", "output_hidden_states"}
)
"""Settings that are replaced by the request's own, or that a greedy answer does not depend on."""


def __getattr__(name: str) -> Any:
    """`LetheonTask`, made when lm-evaluation-harness asks for it: this file itself needs no extra."""
    if name == "LetheonTask":
        return _task_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _task_class() -> type[Any]:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    class LetheonTask(ConfigurableTask):  # type: ignore[misc]  # a package without types
        """One set of a benchmark's questions."""

        def __init__(self, config: Mapping[str, Any]) -> None:
            known = {key: value for key, value in config.items() if key != "class"}
            super().__init__(config={**known, "process_results": item_scores})

        def download(self, *_: Any, **__: Any) -> None:
            """The rows of the task's file, in memory: no cache keeps a copy of the text."""
            from datasets import Dataset

            self.dataset = {"test": Dataset.from_list(rows_of(self.config.metadata))}

        def build_all_requests(self, **given: Any) -> None:
            """Refuse what would be another number, then build."""
            check(self.config.metadata, list(self.task_docs), given, self.config.generation_kwargs)
            super().build_all_requests(**given)

        def construct_requests(self, doc: Mapping[str, Any], ctx: str, **kwargs: Any) -> list[Any]:
            """Each continuation, the space before them, the greedy answer: in the order that `item_scores` takes."""
            place = {"metadata": kwargs["metadata"]}
            ends = self.config.metadata["letheon"]["ends"]
            return [
                Instance(kind, doc, arguments, number, **place)
                for number, (kind, arguments) in enumerate(requests_of(doc, ends))
            ]

    return LetheonTask


def requests_of(doc: Mapping[str, Any], ends: Sequence[int]) -> list[tuple[str, tuple[Any, ...]]]:
    """(kind of request, its arguments) of a question, in the order that `item_scores` takes their results."""
    context = doc["context"]
    made: list[tuple[str, tuple[Any, ...]]] = [("loglikelihood", (context, one)) for one in doc["continuations"]]
    if doc["space"]:
        made.append(("loglikelihood", (context.rstrip(), doc["space"])))
    if doc["room"]:
        how = {**GREEDY, **NEUTRAL, "max_gen_toks": doc["room"], "eos_token_id": [*ends]}
        made.append(("generate_until", (context, how)))
    return made


def rows_of(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The questions beside the task's YAML. Raises BadInput: no such file, or another one than was written."""
    path = Path(metadata["config_source"]).parent / metadata["letheon"]["data"]
    if not path.is_file():
        raise BadInput(
            f"{path}: no such file. It belongs beside {metadata['config_source']}: letheon harness writes both"
        )
    if sha256_file(path) != metadata["letheon"]["sha256"]:
        raise BadInput(f"{path}: was changed after it was written. Write it again: letheon harness")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def check(
    metadata: Mapping[str, Any],
    docs: Sequence[Mapping[str, Any]],
    given: Mapping[str, Any],
    generation: Mapping[str, Any] | None,
) -> None:
    """Raise BadInput, with every reason, where the numbers would not be those of the same name.

    Args:
        metadata: of the task, with the arguments of the model among it, as lm_eval hands them over.
        docs: its questions.
        given: what `build_all_requests` was called with.
        generation: the task's settings of generation, after lm_eval's --gen_kwargs.
    """
    problems = []
    if given.get("apply_chat_template") or given.get("system_instruction"):
        problems.append(
            "letheon's tasks show a question as the model's own template does, or as the benchmark has it. Run lm_eval "
            "without --apply_chat_template and --system_instruction"
        )
    if generation is not None and generation != GREEDY:
        problems.append("letheon's tasks are answered greedily. Run lm_eval without --gen_kwargs")
    try:
        _check_model(metadata, docs)
    except BadInput as error:
        problems += error.problems
    if problems:
        raise BadInput(problems)


def _check_model(metadata: Mapping[str, Any], docs: Sequence[Mapping[str, Any]]) -> None:
    own = metadata["letheon"]
    written = f"the tasks were written for {own['written_for']}"
    model = metadata.get("pretrained")
    if not isinstance(model, str) or not Path(model).is_dir():
        raise BadInput(
            f"{written}, and whether the model that is run ({model!r}) has its tokens cannot be seen. Give its folder: "
            "--model hf --model_args pretrained=DIR, or TaskManager(..., metadata={'pretrained': DIR})"
        )
    window = int(metadata.get("max_length") or inspect_any(Path(model)).window)
    if window < own["longest"]:
        raise BadInput(
            f"{written}, a question and its answer have up to {own['longest']} tokens, and the window of {model} is "
            f"{window}. lm_eval would cut them: run a model with a longer window"
        )
    if "prefix_token_id" in metadata:
        raise BadInput("prefix_token_id changes what stands before a question. Run lm_eval without it")
    tokenizer = load_tokenizer(Path(str(metadata.get("tokenizer") or model)))
    if fingerprint(tokenizer, docs, add_bos=metadata.get("add_bos_token")) != own["tokens"]:
        raise BadInput(
            f"{written}, and to the tokenizer of {model} its questions are other tokens. Write them for this model: "
            f"letheon harness {model} ..."
        )
    if any(doc["room"] for doc in docs):
        _check_generation(Path(model))


def _check_generation(model: Path) -> None:
    """The settings of generation in a model's folder stay in force where a request does not replace them."""
    path = model / "generation_config.json"
    brought = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    strange = sorted(name for name, value in brought.items() if name not in HARMLESS and value)
    if strange:
        raise BadInput(
            f"{path}: sets {', '.join(strange)}, which changes what is said, and a greedy answer is asked for. Take it "
            "out of a copy of the folder"
        )
