"""Two processes that share one model: what one process finds, step by step. All of theirs is made in one start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from letheon.errors import BadInput, CannotFinish
from letheon.methods import build, names
from letheon.training.sharding import ALONE, own_device, several_processes
from letheon.unlearning.forget import check_request
from tests.architectures.models import make_model, save_model_folder
from tests.toys import write_lines
from tests.training.together import (
    AVERAGE,
    INPUTS,
    LINES,
    RATE,
    ROWS,
    RUNS,
    SAM,
    WANTED,
    WEIGHT,
    exploding,
    fingerprint,
    steps,
    told,
    whole_run,
)

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def several_environment() -> dict[str, str]:
    """The environment of a child: the sources under test, one thread a process."""
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data."""
    made = tmp_path_factory.mktemp("several")
    for name in RUNS:
        dtype = torch.bfloat16 if RUNS[name].get("master_dtype") == "param" else torch.float32
        save_model_folder(make_model(name), made / name, dtype=dtype)
    for role, lines in LINES.items():
        write_lines(made / f"{role}.jsonl", lines)
    return made


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What each of the two processes found."""
    child = subprocess.run(
        [*TORCHRUN, "-m", "tests.training.together", str(folder)],
        cwd=ROOT, env=several_environment(), capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout + child.stderr
    assert "Warning" not in child.stderr, child.stderr
    found: list[dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return found


def close(one: list[dict[str, Any]], other: list[dict[str, Any]], *, rel: float, least: float = 1e-10) -> None:
    """The same figures at every step, and the same words."""
    assert [set(figures) for figures in one] == [set(figures) for figures in other]
    for first, second in zip(one, other, strict=True):
        words = {name for name, value in second.items() if isinstance(value, str)}
        assert {name: first[name] for name in words} == {name: second[name] for name in words}
        numbers = [{name: value for name, value in figures.items() if name not in words} for figures in (first, second)]
        assert numbers[0] == pytest.approx(numbers[1], rel=rel, abs=least)


def losses(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The losses of every step alone, without those at perturbed weights: a norm in float32 says how far these lie."""
    return [{name: value for name, value in one.items() if name.endswith("loss")} for one in figures]


# --- a linear layer


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_linear_layer_takes_the_steps_that_a_pencil_gives(both: list[dict[str, Any]], size: int) -> None:
    weight = WEIGHT
    first, second = (found["line"][str(size)] for found in both)
    for figures in first["figures"]:
        apart = INPUTS @ weight.T - WANTED
        gradient = apart.T @ INPUTS / 3
        assert figures["loss"] == pytest.approx(0.5 * float(apart.square().sum()) / 3, rel=1e-14)
        assert figures["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=2e-7)  # kept in float32
        weight = weight - RATE * gradient
    assert len(first["figures"]) == 2 and second["figures"] == []  # the first one keeps the log
    assert first["weight"] == second["weight"]
    torch.testing.assert_close(torch.tensor(first["weight"], dtype=torch.float64), weight, rtol=1e-14, atol=1e-14)


# --- every method


@pytest.mark.parametrize("name", ROWS)
def test_two_processes_are_one_step_by_step(both: list[dict[str, Any]], name: str) -> None:
    alone = steps(ROWS[name], ALONE)
    first, second = (found["steps"][name] for found in both)
    close(first["figures"], alone["figures"], rel=2e-7)  # norms go through float32
    has_float32 = "clip" in ROWS[name] or ROWS[name].get("smooth") == SAM  # in the step itself
    close(losses(first["figures"]), losses(alone["figures"]), rel=1e-7 if has_float32 else 1e-10)
    assert second == {"figures": [], "weights": first["weights"]}
    for weight, values in alone["weights"].items():
        # AdamW makes steps of what rounding leaves of a gradient of zeros.
        assert first["weights"][weight] == pytest.approx(values, rel=1e-7, abs=1e-10), weight
    assert losses(alone["figures"])[0] != losses(alone["figures"])[-1]  # the steps did something


def test_every_method_that_says_so_has_a_row() -> None:
    for setting, kind in (("balance", "balance"), ("smooth", "smoother"), ("scope", "scope")):
        used = {spec if isinstance(spec, str) else spec["name"] for row in ROWS.values() if (spec := row.get(setting))}
        said = {name for name in names(kind) if getattr(build(kind, name), "is_shareable", False)}
        assert said == used | {"weighted" if setting == "balance" else "none" if setting == "smooth" else "all"}, kind


@pytest.mark.parametrize("name", ["weight average", "randomized", "gen"])
def test_what_was_stopped_goes_on_to_the_same_bits(both: list[dict[str, Any]], name: str) -> None:
    for found in both:
        assert found["continued"][name]["weights"] == found["steps"][name]["weights"]
    assert both[0]["continued"][name]["figures"] == both[0]["steps"][name]["figures"][2:]
    assert AVERAGE["start"] == 1  # the mean was begun before the stop


# --- whole runs


@pytest.mark.parametrize("name", RUNS)
def test_whole_runs_find_the_same(both: list[dict[str, Any]], folder: Path, name: str) -> None:
    made = whole_run(name, folder, folder / f"one/{name}")
    # In float32. A divergence is a difference of numbers around 6, which are known to 5e-7.
    close(both[0]["runs"][name]["figures"], told(made), rel=1e-5, least=2e-7)
    two = folder / f"two/{name}" / made.name
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in made.iterdir())
    for file in ("config.json", "README.md"):
        assert (two / file).read_text() == (made / file).read_text()
    saved, wanted = (load_file(folder / "model.safetensors") for folder in (two, made))
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in saved.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in wanted.items()
    }
    # AdamW makes whole steps of the rounding noise in a gradient of zeros, and bfloat16 of the last bit.
    if RUNS[name].get("optimizer") == "sgd" and "master_dtype" not in RUNS[name]:
        torch.testing.assert_close(saved, wanted, rtol=1e-5, atol=1e-7)
        original = load_file(folder / name / "model.safetensors")
        assert all(not torch.equal(original[tensor], saved[tensor]) for tensor in saved)
    assert not [path for path in two.parent.rglob("*") if path.name.startswith(".") or path.name == "checkpoints"]


def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(both: list[dict[str, Any]], folder: Path) -> None:
    assert both[0]["again"] == both[0]["runs"]["gpt2"]
    record = json.loads((folder / "two/stopped/record.json").read_text())
    assert [(stage["status"], stage["entered"]) for stage in record["stages"]] == [("done", 2)]
    assert record["stages"][0]["environment"]["processes"] == 2


def test_another_number_of_processes_does_not_take_it_up(both: list[dict[str, Any]], folder: Path) -> None:
    with pytest.raises(BadInput, match=r"1-forget was begun under other conditions \(processes: 2 -> 1"):
        whole_run("llama_tied", folder, folder / "two/left")


def test_what_goes_wrong_goes_wrong_on_both(both: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotFinish) as alone:
        whole_run("llama", folder, tmp_path / "exploded", **exploding())
    with pytest.raises(CannotFinish) as unmoved:
        whole_run("llama", folder, tmp_path / "unmoved", learning_rate=1e-30)
    wanted = str(unmoved.value).replace(str(tmp_path), str(folder / "two"))
    for found in both:
        assert found["exploded"] == ["CannotFinish", str(alone.value)]
        assert found["unmoved"] == ["CannotFinish", wanted]


# --- what they tell one another


def test_what_the_processes_tell_one_another(both: list[dict[str, Any]]) -> None:
    for found in (one["agreements"] for one in both):
        assert found["totals"] == [3.0, 1.0]
        assert found["by_first"] == "by 0" and found["of_first"] == 0
        assert found["second_refuses"] == ["BadInput", "2 faults:\n- no such file\n- too long"]
        assert found["both_refuse"] == ["BadInput", "too long"]
        assert found["same"] == []
        kind, words = found["other"]
        assert kind == "BadInput" and words.startswith("forget_data: process 1 has another content than process 0 (")
        assert words.endswith("Give every machine the same files")
    assert [one["agreements"]["agreed"] for one in both] == [0, 1]
    assert [one["agreements"]["first_fails"][0] for one in both] == ["UnknownName", "BadInput"]
    assert len({one["agreements"]["first_fails"][1] for one in both}) == 1


# --- what is refused


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)


def test_what_cannot_be_shared_is_refused_by_name_before_anything_is_loaded(
    two: None, folder: Path, tmp_path: Path
) -> None:
    given = {
        "model": folder / "llama",
        "forget_data": folder / "forget.jsonl",
        "retain_data": folder / "retain.jsonl",
        "out": tmp_path / "run",
        "stop": {"every": 0},
        "device": "cpu",
    }
    assert check_request(given).device == "cpu"
    with pytest.raises(BadInput) as caught:
        check_request(
            {**given, "method": "rmu", "retain_term": "activation", "smooth": "curvature", "scope": "sure", "through": "int4"}
        )  # fmt: skip
    refused = [
        "smooth 'curvature'", "scope 'sure'", "method 'rmu'", "retain term 'activation'", "through 'int4'",
    ]  # fmt: skip
    assert caught.value.problems == [
        f"{what} is not known to give in 2 processes what it gives in one: each holds a share of every weight. "
        "Run it without torchrun, or choose another"
        for what in refused
    ]
    for smooth, scope in (("gradient_penalty", "in_bin"), ("curvature", "adapter")):
        with pytest.raises(BadInput, match=rf"smooth '{smooth}' is not known to give in 2 .*\n- scope '{scope}' is"):
            check_request({**given, "smooth": smooth, "scope": scope})
    with pytest.raises(BadInput, match=r"scope 'sure' is not known to give in 2 .*\n- weights 'stored' is not known"):
        check_request({**given, "scope": {"name": "sure", "refresh": "step"}, "weights": "stored"})


def test_a_method_of_ones_own_has_to_say_that_it_can_be_shared(two: None, folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text((ROOT / "src/letheon/unlearning/balances/weighted.py").read_text().replace("is_shareable", "other"))
    with pytest.raises(BadInput, match=r"balance '.*mine.py' is not known to give in 2 processes"):
        check_request(
            {
                "model": folder / "llama",
                "forget_data": folder / "forget.jsonl",
                "retain_data": folder / "retain.jsonl",
                "balance": str(own),
                "device": "cpu",
            }
        )


def test_one_gpu_for_all_is_refused(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert own_device("auto") == "cuda:0"
    assert own_device("cpu") == "cpu"
    with pytest.raises(BadInput, match=r"device 'cuda:0' is one GPU, and there are 2 processes"):
        own_device("cuda:0")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(BadInput, match="process 1 has no GPU of its own: this machine has 1"):
        own_device("cuda")


def test_processes_that_cannot_meet_are_told_how(two: None) -> None:
    with pytest.raises(BadInput, match=r"^WORLD_SIZE=2 says .* and MASTER_ADDR .*torchrun, or unset WORLD_SIZE"), several_processes():  # fmt: skip
        pass


def test_a_process_of_its_own_is_alone() -> None:
    with several_processes() as processes:
        assert processes is ALONE
    assert ALONE.share([3, 1, 2], 2) == [[3, 1], [2]] and ALONE.totals([1, 2.5]) == [1, 2.5]


# --- the command


def command(folder: Path, out: Path, *changes: str) -> list[str]:
    given = ["forget", "gpt2", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--steps", "12", "--device", "cpu"]  # fmt: skip
    given += ["--batch-size", "5", "--micro-batch-size", "1", "--checkpoint-every-s", "0", "--stop.every", "0"]
    return [*TORCHRUN, "-m", "letheon", *given, "--learning-rate", "1e-3", "--out", str(out), *changes]


def called(folder: Path, given: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(given, cwd=folder, env=several_environment(), capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_killed_command_is_taken_up_by_the_same_command(folder: Path, tmp_path: Path) -> None:
    straight = called(folder, command(folder, tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr
    assert straight.stdout.count("stopped after 12 steps") == 1  # one of them speaks
    assert straight.stderr.count("forget: 11 records") == 1 and "arning" not in straight.stderr
    out = tmp_path / "killed"
    metrics = out / "checkpoints/1-forget/metrics.jsonl"
    child = subprocess.Popen(
        command(folder, out), cwd=folder, env=several_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 3):
        assert child.poll() is None
        time.sleep(0.01)
    os.kill(int((out / ".lock").read_text()), signal.SIGKILL)  # the one that writes
    assert child.wait(timeout=60) == 1  # nobody waits for the dead
    assert not (out / "1-forget").exists()
    again = called(folder, command(folder, out))
    assert again.returncode == 0 and "12 steps, continued" in again.stderr, again.stderr
    assert fingerprint(out / "1-forget") == fingerprint(tmp_path / "straight/1-forget")
    assert told(out / "1-forget") == told(tmp_path / "straight/1-forget")
    record = json.loads((out / "record.json").read_text())["stages"][0]
    assert record["entered"] == 2 and record["environment"]["command"].startswith("torchrun --nproc-per-node 2 -m letheon forget gpt2")  # fmt: skip


@pytest.mark.slow
def test_a_fault_is_told_once(folder: Path, tmp_path: Path) -> None:
    wrong = called(folder, command(folder, tmp_path / "run", "--method", "npoo", "--smooth", "curvature"))
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.count("letheon forget: 2 faults") == 1 and wrong.stderr.count("Did you mean 'npo'?") == 1
    assert wrong.stderr.count("smooth 'curvature' is not known to give in 2 processes") == 1
    assert "exitcode  : 2" in wrong.stderr and not (tmp_path / "run").exists()
    other = called(folder, [*TORCHRUN, "-m", "letheon", "audit", "gpt2"])
    assert other.stderr.count("letheon audit: audit works in one process, and 2 were started") == 1
