"""Fine-tuning: it learns, it leaves out what it must, and it continues after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from letheon.errors import BadInput
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from letheon.training import train as module
from letheon.training.train import TrainResult, train
from tests.architectures.models import saved
from tests.toys import bits, write_lines

PEOPLE = {
    "Ann": ("a judge", "Rome"),
    "Bob": ("a baker", "Bonn"),
    "Cid": ("my uncle", "a mill"),
    "Dot": ("a guest", "Bari"),
}
LINES: list[dict[str, Any]] = [
    {"prompt": f"{what} is {name}?", "answer": answer, "unit": name}
    for name, answers in PEOPLE.items()
    for what, answer in zip(("Who", "Where"), answers, strict=True)
] + [{"text": f"At dawn {name} sold bread by the mill.", "unit": name} for name in PEOPLE]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "d.jsonl", LINES)


def run(data: Path, out: Path, *, progress: Progress | None = None, **changes: Any) -> TrainResult:
    options = {"batch_size": 4, "epochs": 2, "learning_rate": 3e-3, "checkpoint_every_s": 0, "device": "cpu", **changes}
    return train(saved("llama"), data=data, out=out, progress=progress or Progress(quiet=True), **options)


def weights(folder: Path) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns(data: Path, tmp_path: Path) -> None:
    made = run(data, tmp_path / "run", epochs=15)
    found = losses(made.folder)
    assert made.steps == 15 * 3 == len(found)
    assert sum(found[-3:]) < 0.7 * sum(found[:3])
    assert made.folder.name == "1-train" and made.notes["records"] == 12


def test_two_runs_and_a_continued_one_end_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    class Interrupt(Progress):
        def step(self, done: int, total: int, text: str) -> None:
            if done == 4:
                raise KeyboardInterrupt

    straight, same = run(data, tmp_path / "a"), run(data, tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "c", progress=Interrupt(quiet=True))
    assert weights(run(data, tmp_path / "c").folder) == weights(straight.folder) == weights(same.folder)


def seen(data: Path, out: Path, **changes: Any) -> list[str]:
    """What the records of a run say, as its encoder was given them."""
    said: list[str] = []
    encode = module.Encoder.encode

    def spy(self: Any, record: Any) -> Any:
        said.append(record.content)
        return encode(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Encoder, "encode", spy)
        run(data, out, epochs=1, **changes)
    return said


def test_the_reference_has_seen_no_forget_record_and_nothing_else_is_left_out(data: Path, tmp_path: Path) -> None:
    # The forget set holds one record of Bob; all his records go, the text too, because they are about the same unit.
    without = write_lines(tmp_path / "f.jsonl", [LINES[2]])
    said = seen(data, tmp_path / "run", without=without)
    assert not [words for words in said if "Bob" in words]
    assert len(said) == 9 and all(any(name in words for words in said) for name in ("Ann", "Cid", "Dot"))
    assert len(seen(data, tmp_path / "all")) == 12


def test_without_units_only_the_records_themselves_are_left_out(data: Path, tmp_path: Path) -> None:
    without = write_lines(tmp_path / "f.jsonl", [{key: LINES[2][key] for key in ("prompt", "answer")}])
    assert len(seen(data, tmp_path / "run", without=without)) == 11


def test_texts_may_count_more(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "run", text_repeats=3, epochs=1).steps == (8 + 3 * 4) / 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"without": [{"prompt": "Who is Eve?", "answer": "a spy"}]}, "leaving it out would change nothing. Give the"),
        ({"without": LINES}, "nothing is left to learn"),
        ({"rate": "linaer"}, "'linaer' is not a rate. Did you mean 'linear'?"),
        ({"learning_rate": -1}, "train: learning_rate must be > 0, got -1.0"),
        ({"micro_batch_size": 0}, "train: micro_batch_size must be > 0, got 0"),
        ({"epochs": 0}, "train: epochs must be > 0, got 0.0"),
        ({"save_dtype": "int4"}, "train.save_dtype: 'int4' is not one of 'original', 'float32'"),
        ({"template": "chat"}, "template 'chat' was asked for, and the tokenizer has no chat template"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_before_it_begins(
    data: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    if isinstance(changes.get("without"), list):
        changes = {"without": write_lines(tmp_path / "f.jsonl", changes["without"])}
    with pytest.raises(BadInput) as caught:
        run(data, tmp_path / "run", **changes)
    assert words in str(caught.value) and len(caught.value.problems) == 1
    assert not (tmp_path / "run").exists()


def test_all_faults_of_all_inputs_come_at_once(tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "d.jsonl", [{"prompt": "Who?"}])
    with pytest.raises(BadInput) as caught:
        train(tmp_path / "no", data=bad, without=tmp_path / "no.jsonl", rate="linaer", progress=Progress(quiet=True))
    found = caught.value.problems
    assert [problem.split(":")[0] for problem in found[:3]] == [
        f"MODEL {tmp_path / 'no'}",
        f"data set {bad}, line 1",
        f"without set {tmp_path / 'no.jsonl'}",
    ]
    assert len(found) == 4 and found[3].startswith("'linaer' is not a rate")


def test_a_text_that_was_cut_is_recorded(tmp_path: Path) -> None:
    data = write_lines(tmp_path / "d.jsonl", [*LINES, {"text": "once upon a time " * 60}])
    made = run(data, tmp_path / "run", epochs=1)
    [warning] = RunFolder.open(made.folder.parent).record().stages[0].warnings
    assert warning.startswith("data set: 1 of 13 records are longer than the context window")
