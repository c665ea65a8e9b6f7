"""The verb: what it writes is what it printed, a stopped run goes on, and nothing is asked before all is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import letheon
from letheon.audits import benchmark as module
from letheon.audits.benchmark import benchmark, check_request, read_log, recomputed
from letheon.audits.benchmarks.tofu import Tofu
from letheon.errors import BadInput, CannotFinish
from letheon.runs.progress import Progress
from letheon.settings import plain
from tests.audits.benchmarks.data import by_name, choices_file, model_folder, tofu_files
from tests.toys import llama, tokenizer

QUIET = Progress(quiet=True)
KS = "forget_quality.ks.truth_ratio_geometric"


class Given:
    """A model, a retrained one, and a small TOFU."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model, self.other = model_folder(root / "m"), model_folder(root / "other", seed=1)
        self.data = tofu_files(root / "tofu", forget=25, other=22)

    def run(self, model: Path | None = None, **settings: Any) -> Any:
        chosen = {"name": "tofu", "data": self.data, "split": "forget01", "longest": 44, **settings.pop("tofu", {})}
        given = {"benchmark": chosen, "resamples": 1000, "progress": QUIET, "out": self.root / "run", **settings}
        return benchmark(model or self.model, **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def log(made: Given) -> Any:
    """Of the retrained model, by itself."""
    return made.run(made.other, out=made.root / "log")


def test_what_is_printed_can_be_made_again_from_what_is_written(made: Given, log: Any) -> None:
    result = made.run(reference=made.other, out=made.root / "first")
    found = json.loads(result.log_path.read_text())
    assert [plain(figure) for figure in recomputed(found)] == found["figures"] == [plain(one) for one in result.figures]
    for table in found["tables"].values():
        numbers = [value for values in table["columns"].values() for value in values]
        assert numbers == [float(f"{value:.8g}") for value in numbers], "a file keeps eight digits"
    figures = by_name(result.figures)
    assert figures[f"{KS}.p"].value < 1 and figures["forget.probability"].n == 25
    assert found["reference"]["path"] == str(made.other) and list(found["reference_tables"]) == ["forget"]
    assert set(found["data"]) == {"forget", "retain", "real_authors", "world_facts"}
    # A log in the model's place gives the very same numbers.
    again = made.run(reference=log.log_path, out=made.root / "second")
    assert again.figures == result.figures
    assert made.run(reference=log.run, out=made.root / "third").figures == result.figures
    assert by_name(log.figures)[f"{KS}.p"].value is None


def test_raw_text_is_in_items_alone(made: Given, log: Any) -> None:
    assert "hat" not in json.dumps(json.loads(log.log_path.read_text())["tables"])
    lines = [json.loads(line) for line in (log.run / "items.jsonl").read_text().splitlines()]
    assert {tuple(line) for line in lines} == {("model", "item", "prompt", "answer", "said")}
    assert len(lines) == 25 + 22 + 7 + 7
    (stage,) = json.loads((log.run / "record.json").read_text())["stages"]
    assert stage["outputs"]["items.jsonl"]["may_be_purged"] and not stage["outputs"]["benchmark.json"]["may_be_purged"]


def test_a_finished_run_is_not_asked_again_and_a_changed_one_is_refused(
    made: Given, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_any", lambda *_, **__: pytest.fail("a model was loaded"))
    assert made.run(made.other, out=log.run).figures == log.figures
    with pytest.raises(BadInput, match="another recipe"):
        made.run(made.other, out=log.run, tofu={"limit": 24})
    with pytest.raises(BadInput, match="model"):
        made.run(made.model, out=log.run)


def test_a_stopped_run_goes_on_where_it_stopped(made: Given, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = Tofu.measure

    def stopping(self: Tofu, posed: Any, scorer: Any) -> Any:
        asked.append(posed.answer.name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, posed, scorer)

    monkeypatch.setattr(Tofu, "measure", stopping)
    out = made.root / "stopped"
    with pytest.raises(KeyboardInterrupt):
        made.run(made.other, out=out)
    assert not (out / "benchmark.json").exists()
    assert made.run(made.other, out=out).figures == log.figures
    names = [f"{name}/answer" for name in ("forget", "retain", "real_authors", "real_authors", "world_facts")]
    assert asked == names


def test_a_log_of_anything_else_is_refused(made: Given, log: Any, tmp_path: Path) -> None:
    """A Kolmogorov-Smirnov test takes any two samples without a word."""
    cases: dict[str, dict[str, Any]] = {
        "holds 25 items of forget, and MODEL is asked 20": {"limit": 20},
        "made with form 'auto', and now it is 'phi'": {"form": "phi"},
        "made with split 'forget01', and now it is 'forget05'": {"split": "forget05"},
    }
    tofu_files(made.data, forget=25, other=22, split="forget05")
    for said, changed in cases.items():
        with pytest.raises(BadInput, match=said):
            made.run(reference=log.log_path, out=tmp_path / "run", tofu=changed)
    other = tofu_files(tmp_path / "tofu", forget=25, other=22)
    text = (other / "forget01_perturbed.json").read_text()
    (other / "forget01_perturbed.json").write_text(text.replace("Ann", "Bob"))
    with pytest.raises(BadInput, match="was asked other tokens for forget"):
        made.run(reference=log.log_path, out=tmp_path / "run", tofu={"data": other})
    wmdp = {"name": "wmdp", "data": choices_file(tmp_path / "c.jsonl"), "ask": "texts"}
    with pytest.raises(BadInput, match="is a log of tofu, not of wmdp"):
        made.run(reference=log.log_path, out=tmp_path / "run", benchmark=wmdp)
    assert not (tmp_path / "run").exists()


def test_a_log_that_was_changed_is_refused(log: Any, tmp_path: Path) -> None:
    found = json.loads(log.log_path.read_text())
    path = tmp_path / "benchmark.json"
    for change in (
        lambda one: one["figures"][0].update(value=0.5),
        lambda one: one["tables"]["forget"]["columns"]["probability"].__setitem__(0, 0.9),
    ):
        copied = json.loads(json.dumps(found))
        change(copied)
        path.write_text(json.dumps(copied))
        with pytest.raises(BadInput, match="not those of its own items"):
            read_log(path)
    for text, said in (("{}", "is no log"), ("{", "cannot be read"), ('{"schema": "letheon.benchmark/1"}', "damaged")):
        path.write_text(text)
        with pytest.raises(BadInput, match=said):
            read_log(path)


def test_all_faults_of_all_inputs_come_at_once(made: Given, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        check_request(
            {
                "model": tmp_path / "no",
                "benchmark": {"name": "tofu", "data": tmp_path},
                "reference": tmp_path / "neither",
                "seed": -1,
                "resamples": 5,
                "device": "gpu",
                "sed": 1,
            }
        )
    told = "\n".join(raised.value.problems)
    for said in ("MODEL", "no forget10_perturbed.json", "neither", "seed must", "resamples must", "gpu", "'sed'"):
        assert said in told
    with pytest.raises(BadInput, match="'benchmark'"):
        check_request({"model": made.model})
    with pytest.raises(BadInput, match=r"'tofo' is not a benchmark.* Did you mean 'tofu'"):
        check_request({"model": made.model, "benchmark": "tofo"})


def test_a_reference_of_another_vocabulary_is_refused(made: Given, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "strange")
    changed = tokenizer()
    changed.add_tokens(["potter"])
    changed.save_pretrained(folder)
    with pytest.raises(BadInput, match="another vocabulary"):
        made.run(reference=folder, out=tmp_path / "run")


def test_a_model_against_itself_is_said_and_is_one(made: Given, capsys: pytest.CaptureFixture[str]) -> None:
    found = by_name(
        made.run(made.other, reference=made.other, out=made.root / "self", progress=Progress(quiet=True)).figures
    )
    assert (found[f"{KS}.p"].value, found[f"{KS}.D"].value) == (1, 0)
    assert "compared with itself" in capsys.readouterr().err


def test_a_model_whose_numbers_are_none_cannot_be_measured(made: Given, tmp_path: Path) -> None:
    broken = llama(max_position_embeddings=512)
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    folder = model_folder(tmp_path / "nan", model=broken)
    with pytest.raises(CannotFinish, match=r"nan, forget: the model's log-probabilities .* not finite"):
        made.run(folder, out=tmp_path / "run")
    assert not (tmp_path / "run" / "benchmark.json").exists()


def test_it_is_a_function_of_the_package(made: Given) -> None:
    assert letheon.benchmark is benchmark
    assert check_request({"model": made.model, "benchmark": "people"}).run == Path("runs/m-people")
