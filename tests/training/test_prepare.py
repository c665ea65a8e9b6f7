"""Before the first step and after the last: collect faults, keep metrics in step, refuse a file that lost a change."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from letheon.data.records import DataFile
from letheon.errors import BadInput, CannotFinish
from letheon.models import ModelFolder, inspect_model, load_model
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder, Stage
from letheon.training.prepare import (
    MetricsFile,
    Opened,
    StageCheckpoints,
    collect,
    environment,
    open_for_training,
    repeated_items,
    save_stage,
    unit_note,
)
from tests.architectures.models import make_model, save_model_folder, saved
from tests.toys import bits, question, text


def test_all_faults_of_all_checks_come_at_once() -> None:
    def fail(*words: str) -> Any:
        raise BadInput(list(words))

    with pytest.raises(BadInput) as caught:
        collect(lambda: 1, lambda: fail("a", "b"), lambda: 2, lambda: fail("c"))
    assert caught.value.problems == ["a", "b", "c"]
    assert collect(lambda: 1, lambda: None, lambda: "x") == [1, None, "x"]
    with pytest.raises(ZeroDivisionError):  # our own mistakes are not somebody's bad input
        collect(lambda: 1 / 0, lambda: fail("a"))


def test_what_decides_the_last_bits_is_recorded() -> None:
    found = environment("cpu")
    assert found == {
        "processes": 1,
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


def test_texts_are_repeated_and_questions_are_not() -> None:
    records = [question("Who?", "Ann"), text("A mill."), question("Where?", "Rome"), text("A lake.")]
    assert repeated_items(records, 3) == [0, 1, 1, 1, 2, 3, 3, 3]
    assert repeated_items(records, 1) == [0, 1, 2, 3]


def test_sets_without_units_are_noted() -> None:
    records = (question("Who?", "Ann"),)
    assert "forget set: no 'unit' field" in unit_note(DataFile(Path("f"), "forget", records, unit_is_line=True))
    assert unit_note(DataFile(Path("f"), "forget", records, unit_is_line=False)) == ""


def test_a_model_is_opened_with_float32_masters(tmp_path: Path) -> None:
    folder = inspect_model(save_model_folder(make_model("llama"), tmp_path / "m", dtype=torch.bfloat16))
    opened = open_for_training(folder, device="cpu", template="auto")
    assert {parameter.dtype for parameter in opened.model.parameters()} == {torch.float32}
    assert opened.body.is_cut and opened.encoder.max_length == 128 and not opened.model.training
    with opened.autocast():
        assert not torch.is_autocast_enabled("cpu")


# --- metrics


def test_metrics_follow_the_checkpoint(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.cut_after(3)  # nothing there yet
    for step in range(1, 6):
        metrics.append({"step": step, "loss": 0.1 + 0.2 * step, "note": "a"})
    with metrics.path.open("a") as file:
        file.write('{"step": 6, "lo')  # torn by a kill
    metrics.cut_after(3)
    lines = [json.loads(line) for line in metrics.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0] == {"step": 1, "loss": 0.3, "note": "a"}  # seven digits, not seventeen
    metrics.append({"step": 4, "loss": 1.0, "note": ""})
    assert len(metrics.path.read_text().splitlines()) == 4


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage that runs; a failure inside it is the test's business."""
    with RunFolder.open(tmp_path / "run").stage("forget", {}, {}, "forget") as entered:
        assert entered.folder is not None
        yield entered
        entered.folder.mkdir(exist_ok=True)


def test_checkpoints_keep_metrics_and_record_in_step(stage: Stage) -> None:
    metrics = MetricsFile(stage.work / "metrics.jsonl")
    store = StageCheckpoints(stage, metrics)
    metrics.append({"step": 1})
    assert store.load() is None
    assert metrics.path.read_text() == ""  # steps without a checkpoint are made again
    metrics.append({"step": 1})
    store.save(1, {"a": torch.ones(2)}, {"stop": ""})
    metrics.append({"step": 2})
    found = store.load()
    assert found is not None and found[0] == 1 and found[2] == {"stop": ""}
    assert torch.equal(found[1]["a"], torch.ones(2))
    assert metrics.path.read_text() == '{"step": 1}\n'


# --- saving


def moved(tmp_path: Path, factor: float, *, share: float = 1.0) -> tuple[Opened, ModelFolder]:
    """A bfloat16 original, opened, and a share of its weights multiplied."""
    folder = inspect_model(save_model_folder(make_model("llama"), tmp_path / "m", dtype=torch.bfloat16))
    opened = open_for_training(folder, device="cpu", template="auto")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in opened.model.parameters():
            chosen = torch.rand(parameter.shape, generator=generator) < share
            parameter.copy_(torch.where(chosen, parameter * factor, parameter * (1 + 2**-12)))
    return opened, folder


class Said(io.StringIO, TextIO):
    """A stream that counts as one where types are checked."""


def save(opened: Opened, stage: Stage, folder: ModelFolder, **changes: Any) -> str:
    said = Said()
    metrics = MetricsFile(stage.work / "metrics.jsonl")
    metrics.append({"step": 1})
    options = {"save_dtype": "original", "card": "card\n", "progress": Progress(stream=said), **changes}
    save_stage(opened, stage, metrics, original=folder, **options)
    return said.getvalue()


def test_a_stages_folder_holds_model_card_and_metrics(tmp_path: Path, stage: Stage) -> None:
    opened, folder = moved(tmp_path, 1.5)
    assert save(opened, stage, folder) == ""
    assert stage.folder is not None
    assert (stage.folder / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (stage.folder / "README.md").read_text() == "card\n"
    wanted = opened.model.lm_head.weight.to(torch.bfloat16).float()
    assert bits(load_model(stage.folder).lm_head.weight) == bits(wanted)
    found = stage.entry.notes["survival"]
    assert found["moved"] == found["survived"] <= found["total"] and stage.entry.warnings == []


def test_a_file_that_lost_most_of_the_change_is_not_left_behind(tmp_path: Path, stage: Stage) -> None:
    opened, folder = moved(tmp_path, 1.5, share=0.3)
    with pytest.raises(
        CannotFinish, match=r"changed weights only 30% still differ .* bfloat16; .*--save-dtype float32"
    ):
        save(opened, stage, folder)
    assert stage.folder is not None and not stage.folder.exists()
    assert save(opened, stage, folder, save_dtype="float32") == ""  # the remedy works


def test_a_file_that_lost_some_of_the_change_is_warned_about(tmp_path: Path, stage: Stage) -> None:
    opened, folder = moved(tmp_path, 1.5, share=0.7)
    said = save(opened, stage, folder)
    assert said.startswith("warning: only 70% of the changed weights survived being stored as bfloat16. Larger steps")
    assert stage.entry.warnings == ["only 70% of the changed weights survived being stored as bfloat16"]


def test_the_warning_names_the_precision_that_was_written(tmp_path: Path, stage: Stage) -> None:
    opened, folder = moved(tmp_path, 1.5, share=0.7)  # the rest moves by less than float16 can tell, too
    said = save(opened, stage, folder, save_dtype="float16")
    assert "changed weights survived being stored as float16" in said
    assert [warning.rsplit(" ", 1)[1] for warning in stage.entry.warnings] == ["float16"]


def test_a_model_that_did_not_change_is_not_saved(tmp_path: Path, stage: Stage) -> None:
    folder = inspect_model(saved("llama"))
    opened = open_for_training(folder, device="cpu", template="auto")
    with pytest.raises(
        CannotFinish, match=r"no weight has moved, so there is nothing to save\. Use a larger learning rate"
    ):
        save(opened, stage, folder)
    assert stage.folder is not None and not stage.folder.exists()
