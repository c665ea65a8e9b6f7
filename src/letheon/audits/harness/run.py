"""Tasks of lm-evaluation-harness, found, asked of a model that letheon has loaded, and read item by item.

Nothing is downloaded: the hub is closed while a task is found and while it runs, so its data are local files (a YAML
with dataset_path: json and data_files) or lie in the cache of `datasets`. Neither a model's answers nor a data set's
scripts are run as code. The global generators of random numbers are put back as they were.

Source: lm-evaluation-harness 0.4.13 (TaskManager, evaluate).
Checked against: lm_eval's own means on the same model; a model whose logits are NaN; the generators' states.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from letheon.audits.harness.pairs import encode_pair, encode_prompt, encode_rolling
from letheon.audits.scorer import Scorer
from letheon.data.encode import Encoder
from letheon.errors import BadInput, CannotFinish, LetheonError, MissingExtra, NotMeasured, UnknownName
from letheon.quiet import quiet_transformers

FEWSHOT_SEED = 1234
"""lm_eval's own, of examples, numpy and torch."""
_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a task is asked."""

    limit: int | None
    num_fewshot: int | None
    batch_size: int
    apply_chat_template: bool

    def given(self) -> dict[str, Any]:
        """What lm_eval takes by the same names."""
        chat = self.apply_chat_template
        return {"limit": self.limit, "apply_chat_template": chat, "fewshot_as_multiturn": chat}


def find_tasks(names: Sequence[str], include_path: Path | None, asking: Asking) -> dict[str, Any]:
    """Name -> lm_eval's task with its data; a group or a tag becomes its tasks.

    Raises:
        MissingExtra: lm-evaluation-harness is not installed.
        BadInput: with every unknown name, and every task that cannot be asked here.
    """
    with _inside():
        manager = _manager(names, include_path)
        problems: list[str] = []
        found: dict[str, Any] = {}
        for name in [one for given in names for one in _members(manager, given)]:
            try:
                found |= _found(manager, name)
            except BadInput as error:
                problems += error.problems
        problems += [fault for task in found.values() for fault in _faults(task)]
        if problems:
            raise BadInput(problems)
        for task in found.values():
            own = task.get_config("num_fewshot")
            if own is None or (own > 0 and asking.num_fewshot is not None):
                task.set_config(key="num_fewshot", value=asking.num_fewshot or 0)
    return found


def _manager(names: Sequence[str], include_path: Path | None) -> Any:
    """Of one's own tasks alone where these are all that is asked: lm_eval's are thousands of files."""
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise BadInput(f"include_path {include_path}: no such folder. Give the folder of your tasks' YAML files")
    if include_path is not None:
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(names) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=None if include_path is None else str(include_path))


def _members(manager: Any, name: str) -> list[str]:
    """The tasks of a tag, each of which is loaded by itself, so that the faults of all are told; any other name."""
    entry = manager.task_index.get(name)
    return sorted(entry.tags) if entry is not None and entry.kind.name == "TAG" else [name]


def _found(manager: Any, name: str) -> dict[str, Any]:
    if name not in manager.all_tasks:
        raise UnknownName(name, _near(name, manager.all_tasks), what="a task of lm_eval", remedy="lm_eval ls tasks")
    try:
        return dict(manager.load([name])["tasks"])
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = str(error).strip().split("\n")[0] or "no reason given"
        raise BadInput(
            f"task {name}: cannot be loaded here ({type(error).__name__}: {said[:300]}). Nothing is downloaded. Give a "
            "task whose data are local files (dataset_path: json, dataset_kwargs: data_files), or load its data set "
            "once where the hub is open, and bring the cache of datasets (HF_HOME) along"
        ) from error


def _near(name: str, known: Sequence[str]) -> list[str]:
    """The known names that come near: all of them would be thousands."""
    import difflib

    return difflib.get_close_matches(name, known, n=5, cutoff=0.5) or sorted(known)[:5]


def _faults(task: Any) -> list[str]:
    name = task.task_name
    faults = []
    if getattr(task, "UNSAFE_CODE", False):
        faults.append(f"task {name}: runs code that the model has written, which letheon does not. Give another task")
    if getattr(task, "MULTIMODAL", False):
        faults.append(f"task {name}: shows pictures or sound, and the model reads text. Give another task")
    return faults


def path_of(task: Any) -> Path | None:
    """The file that a task is told apart by: its data where these are one local file, else its YAML."""
    config = task.config
    files = (config.dataset_kwargs or {}).get("data_files")
    named = list(files.values()) if isinstance(files, Mapping) else files if isinstance(files, list) else [files]
    if config.dataset_path == "json" and len(named) == 1 and isinstance(named[0], str) and Path(named[0]).is_file():
        return Path(named[0])
    source = Path((config.metadata or {}).get("config_source", ""))
    return source if source.is_file() else None


# --- what will be asked


@dataclass(frozen=True)
class Request:
    """One request as tokens."""

    item: int
    """Position of the question that it belongs to, in the task's data."""
    ids: tuple[int, ...]
    border: int
    """Where what is scored begins; all of it where the model goes on."""


def requests(task: Any, encoder: Encoder, asking: Asking) -> tuple[list[Request], list[str]]:
    """Everything that a task will ask, and a fault for each question that does not fit the window."""
    tokenizer = encoder.tokenizer

    def chat(history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        last = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return tokenizer.apply_chat_template(history, tokenize=False, **last)

    if asking.apply_chat_template and not encoder.uses_chat:
        return [], ["apply_chat_template was asked for, and the tokenizer has no chat template"]
    with _inside(), _naming(task.task_name, BadInput):
        task.set_fewshot_seed(seed=FEWSHOT_SEED)  # else each building draws other examples
        more = {"chat_template": chat} if asking.apply_chat_template else {}
        task.build_all_requests(rank=0, world_size=1, **asking.given(), **more)
    made: list[Request] = []
    problems: list[str] = []
    for instance in task.instances:
        kind, room = instance.request_type, 0
        if kind == "loglikelihood":
            before, after = encode_pair(tokenizer, *instance.args)
            ids, border = [*before, *after], len(before)
        elif kind == "loglikelihood_rolling":  # longer texts are cut into windows, and nothing is left out
            ids, border = encode_rolling(tokenizer, instance.args[0]), 1
        else:
            ids, room = encode_prompt(tokenizer, instance.args[0]), _new_tokens(instance.args[1])
            border = len(ids)
        if kind != "loglikelihood_rolling" and len(ids) + room > encoder.max_length:
            problems.append(
                f"task {task.task_name}, item {instance.doc_id}: {len(ids)} tokens and {room} to be said are more than "
                f"the context window of {encoder.max_length}. Nothing is cut here: use a model with a longer window"
            )
        made.append(Request(instance.doc_id, tuple(ids), border))
    return made, problems


def texts_of(task: Any) -> str:
    """Hash of the texts and settings of a task's requests, as they were built last."""
    return hashlib.sha256(repr([instance.args for instance in task.instances]).encode()).hexdigest()


def _new_tokens(how: Mapping[str, Any]) -> int:
    return int(next((how[name] for name in _NEW_TOKENS if how.get(name)), _DEFAULT_NEW_TOKENS))


# --- asking


@dataclass(frozen=True)
class Said:
    """What lm_eval has logged of a task: its samples, and how each metric is made of all of them."""

    samples: tuple[Mapping[str, Any], ...]
    aggregations: Mapping[str, str]
    """Metric -> the name of lm_eval's function."""
    higher_is_better: Mapping[str, bool | None]
    asked: str
    """What `texts_of` says of the requests that were answered."""


def ask(task: Any, scorer: Scorer, asking: Asking) -> Said:
    """Ask a task. Raises NotMeasured: a logit that is NaN; CannotFinish: what lm_eval or the task's own code raises."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with _inside(), _greedy(scorer), _finite(scorer.model):
        model = HFLM(
            pretrained=scorer.model,
            tokenizer=scorer.encoder.tokenizer,
            batch_size=asking.batch_size,
            max_length=scorer.encoder.max_length,
        )
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        asked = {"tasks": {task.task_name: task}, "groups": {}, "group_map": {}}
        with _naming(task.task_name, CannotFinish):
            found = evaluate(model, asked, bootstrap_iters=0, **asking.given())
    samples = found["samples"][task.task_name]
    named = {metric: getattr(function, "__name__", "") for metric, function in task.aggregation().items()}
    return Said(tuple(samples), named, dict(task.higher_is_better()), texts_of(task))


@contextlib.contextmanager
def _inside() -> Iterator[None]:
    """Around all that lm_eval does: no hub, no chatter, its random numbers its own."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  lm_eval uses the global one
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_closed_hub())
            stack.enter_context(_quiet())
            stack.enter_context(quiet_transformers())
            random.seed(0)
            np.random.seed(FEWSHOT_SEED)  # noqa: NPY002
            torch.manual_seed(FEWSHOT_SEED)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def _naming(task: str, kind: Callable[[str], LetheonError]) -> Iterator[None]:
    """Tasks are code of many hands, which may raise anything; ours is raised as it is."""
    try:
        yield
    except LetheonError:
        raise
    except Exception as error:
        said = str(error).strip().split("\n")[0][:300] or "no reason given"
        raise kind(f"task {task}: lm_eval ended with {type(error).__name__}: {said}") from error


@contextlib.contextmanager
def _closed_hub() -> Iterator[None]:
    """Whatever the environment says, nothing is fetched. Raises MissingExtra without the packages."""
    try:
        import datasets
        import huggingface_hub.constants
        import lm_eval  # noqa: F401  must be there
    except ImportError as error:
        raise MissingExtra("asking the tasks of lm-evaluation-harness", "eval") from error
    places: tuple[Any, ...] = (huggingface_hub.constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Bars and advice of lm_eval and datasets stay out; their errors are raised as ever."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _greedy(scorer: Scorer) -> Iterator[None]:
    """An answer ends at the end of text, or of the turn; the model's own settings of generation are out already."""
    before = scorer.model.generation_config
    ends = {scorer.encoder.eos, scorer.encoder.question("a", "b").ids[-1]}
    scorer.model.generation_config = GenerationConfig(eos_token_id=sorted(ends))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        scorer.model.generation_config = before


@contextlib.contextmanager
def _finite(model: Any) -> Iterator[None]:
    """The arg-max of NaN is a token like any other, and its answer a wrong one instead of none."""

    def look(module: Any, given: Any, output: Any) -> None:
        if bool(torch.isnan(output.logits).any()):
            raise NotMeasured("the model's logits are NaN")

    handle = model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
