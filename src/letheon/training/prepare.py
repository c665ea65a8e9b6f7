"""What every training verb does before its first step, and after its last: open, encode, checkpoint, save.

Source: this project.  Checked against: kill and continue, a bfloat16 original, a change too small for its file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from letheon.data.batches import Batch, collate
from letheon.data.encode import Encoder, Example
from letheon.data.records import DataFile, Record
from letheon.errors import BadInput, CannotFinish
from letheon.models import (
    SURVIVAL_ERROR,
    SURVIVAL_WARNING,
    Exact,
    ModelFolder,
    Survival,
    as_it_is,
    load_model,
    load_tokenizer,
    save_model,
    working_dtype,
)
from letheon.runs.environment import process_count
from letheon.runs.folder import append_line, replacing_folder, write_text
from letheon.runs.progress import Progress
from letheon.runs.record import Stage
from letheon.runs.resume import Checkpoints
from letheon.training.finite import check_finite
from letheon.training.losses import Body
from letheon.training.sharding import ALONE, Processes, gathered, shard


def collect(*checks: Callable[[], Any]) -> list[Any]:
    """Run all checks, then raise one BadInput with every fault, each once; or return what they gave."""
    results: list[Any] = []
    problems: list[str] = []
    for check in checks:
        try:
            results.append(check())
        except BadInput as error:
            problems.extend(error.problems)
            results.append(None)
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))  # several files share what is wrong with their columns
    return results


def environment(device: str) -> dict[str, Any]:
    """What decides the last bits of a sum: processes, threads, device, vector instructions."""
    return {
        "processes": process_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


@dataclass(frozen=True)
class Opened:
    """A model ready to be trained, and how its data are encoded."""

    model: Any
    body: Body
    encoder: Encoder
    device: str
    autocast: Callable[[], AbstractContextManager[Any]]
    processes: Processes = ALONE
    """Who holds the other shares of the weights, and of every logical batch."""


def open_for_training(
    folder: ModelFolder, *, device: str, template: str, dtype: str = "float32", processes: Processes = ALONE
) -> Opened:
    """Load the weights, refuse any that are no numbers, cut the model into body and head, make the encoder.

    Several processes each load the model into host memory, and keep a share of it on their device.

    `dtype`: as `load_model` has it; "stored" where what moves has masters of its own.
    """
    model = load_model(folder.path, dtype=dtype, device=device if processes.count == 1 else "cpu")
    check_finite(model, folder)
    arithmetic = working_dtype(device)

    def autocast() -> AbstractContextManager[Any]:
        return nullcontext() if arithmetic is None else torch.autocast(device.split(":")[0], dtype=arithmetic)

    encoder = Encoder(load_tokenizer(folder.path), max_length=folder.window, template=template)
    body = Body(model)
    shard(body, processes, device)
    return Opened(model, body, encoder, device, autocast, processes)


def repeated_items(records: Sequence[Record], times: int) -> list[int]:
    """Indices into the records, every running text `times` times: how much texts count beside questions."""
    return [item for item, record in enumerate(records) for _ in range(1 if record.is_question else times)]


def micro_batches(opened: Opened, examples: Sequence[Example], items: Sequence[int], size: int) -> list[Batch]:
    """This process's part of a logical batch, in batches of at most `size` on its device.

    Every process gets as many; where one has no item left, a filler stands in.
    """
    pad, made = opened.encoder.pad, []
    for chunk in opened.processes.share(items, size):
        chosen = chunk or items[:1]
        batch = collate([examples[item] for item in chosen], chosen, pad=pad)
        made.append(replace(batch, is_filler=not chunk).to(opened.device))
    return made


class StageCheckpoints:
    """Checkpoints of a stage; its record and its metrics are kept in step with them."""

    def __init__(self, stage: Stage, metrics: MetricsFile) -> None:
        self._stage = stage
        self._metrics = metrics
        self._store = Checkpoints(stage.work)

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint, then the record."""
        self._store.save(step, tensors, state)
        self._stage.keep_time()

    def load(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        """The last checkpoint; metrics of steps after it are dropped, since those steps are made again."""
        found = self._store.load()
        self._metrics.cut_after(found[0] if found else 0)
        return found


class MetricsFile:
    """metrics.jsonl of a stage while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """One step's figures."""
        append_line(self.path, json.dumps({name: _rounded(value) for name, value in line.items()}))

    def cut_after(self, step: int) -> None:
        """Forget the lines of later steps."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # a line torn by a kill has no end
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_text(self.path, "".join(f"{line}\n" for line in kept))


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def save_stage(
    opened: Opened,
    stage: Stage,
    metrics: MetricsFile,
    *,
    original: ModelFolder,
    save_dtype: str,
    card: str,
    progress: Progress,
    gate_units: Sequence[str] = (),
    beside: Callable[[Path], None] | None = None,
    exact: Exact = as_it_is,
    start: ModelFolder | None = None,
) -> Survival:
    """Write the stage's model folder in one swap, read it back, and refuse a file that lost most of the change.

    Args:
        beside: writes something more into the folder, in the same swap.
        exact: see `save_model`.
        start: see `save_model`.
    Raises:
        CannotFinish: fewer than half of the changed weights differ from the original in the file.
    """
    stored_as = original.dtype if save_dtype == "original" else save_dtype
    model = gathered(opened.model, original, opened.processes)

    def write() -> Survival:
        assert stage.folder is not None
        return _written(
            model,
            stage.folder,
            metrics,
            original=original,
            save_dtype=save_dtype,
            card=card,
            gate_units=gate_units,
            beside=beside,
            exact=exact,
            start=start,
        )

    kept = opened.processes.by_first(write)
    share = kept.share
    stage.note("survival", {"moved": kept.moved, "survived": kept.survived, "total": kept.total})
    if share is not None and share < SURVIVAL_WARNING:
        text = f"only {share:.0%} of the changed weights survived being stored as {stored_as}"
        stage.warn(text)
        progress.warn(f"{text}. Larger steps or --save-dtype float32 keep more")
    return kept


def _written(
    model: Any,
    target: Path,
    metrics: MetricsFile,
    *,
    original: ModelFolder,
    save_dtype: str,
    card: str,
    gate_units: Sequence[str],
    beside: Callable[[Path], None] | None,
    exact: Exact,
    start: ModelFolder | None,
) -> Survival:
    """The folder in its place, read back; or the old one, where the new one would hold too little of the change."""
    stored_as = original.dtype if save_dtype == "original" else save_dtype
    with replacing_folder(target) as folder:
        kept = save_model(
            model,
            folder,
            original=original,
            save_dtype=save_dtype,
            card=card,
            gate_units=gate_units,
            exact=exact,
            start=start,
        )
        share = kept.share
        if kept.moved == 0:
            raise CannotFinish(
                f"{target}: no weight has moved, so there is nothing to save. Use a larger learning rate or more "
                "steps; with a gate or a stop rule, see whether anything was left to forget"
            )
        if share is not None and share < SURVIVAL_ERROR:
            raise CannotFinish(
                f"{target}: of {kept.moved} changed weights only {share:.0%} still differ from the original once they "
                f"are stored as {stored_as}; the file would hold "
                "little of the change. Use larger steps, --save-dtype float32, or a scope that moves fewer "
                "weights further"
            )
        if metrics.path.exists():
            shutil.copyfile(metrics.path, folder / "metrics.jsonl")
        if beside is not None:
            beside(folder)
    return kept


def unit_note(data: DataFile) -> str:
    """A sentence for sets whose units are only lines."""
    return f"{data.role} set: no 'unit' field, so each line counts as its own unit" if data.unit_is_line else ""
