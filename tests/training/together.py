"""Runs that one process and two must agree on, and the program that makes the two-process ones.

    python -m torch.distributed.run --nproc-per-node 2 tests/training/together.py FOLDER
writes FOLDER/found.json, with what every row found on each process, and run folders beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from letheon.data.batches import Batch, EpochOrder, RandomOrder
from letheon.errors import LetheonError
from letheon.methods import build
from letheon.runs.progress import Progress
from letheon.training import loop as loop_module
from letheon.training.gradients import MeanGradient, MeanLoss
from letheon.training.loop import Loop, run_loop
from letheon.training.losses import Body
from letheon.training.prepare import Opened, micro_batches
from letheon.training.rates.constant import Constant
from letheon.training.sharding import Processes, several_processes, shard, whole
from letheon.training.stepping import OptimizerSettings
from letheon.training.train import train
from letheon.unlearning.binding import ask_original, bind
from letheon.unlearning.forget import forget
from letheon.unlearning.gate import Gate
from letheon.unlearning.objective import make_gradient
from tests.toys import bits, encoder, gpt2_double, random_examples

# --- a linear layer, of which everything is known

INPUTS = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.25]], dtype=torch.float64)
WANTED = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0], [2.0, 2.0, 0.5]], dtype=torch.float64)
WEIGHT = torch.tensor([[0.5, -0.25], [1.0, 0.0], [-1.5, 2.0]], dtype=torch.float64)
"""Three rows over two processes, and three records: neither can be cut evenly."""
RATE = 0.1


class Line(nn.Module):
    """x -> W x, as one block of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 3, bias=False, dtype=torch.float64)])
        with torch.no_grad():
            self.layers[0].weight.copy_(WEIGHT)
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=1))


class Squares:
    """Half the square of the distance to what is wanted, a sum over records."""

    def __init__(self, body: Any) -> None:
        self.body = body

    def __call__(self, model: Any, batch: Batch) -> tuple[Tensor, int]:
        found = self.body.through(model.layers[0], INPUTS[batch.items])
        total = 0.5 * (found - WANTED[batch.items]).square().sum()
        return (total * 0.0 if batch.is_filler else total), self.count(batch)

    def count(self, batch: Batch) -> int:
        return 0 if batch.is_filler else batch.size


def line(processes: Processes, size: int) -> dict[str, Any]:
    """Two steps of plain descent: loss and norm of each, and the weights at the end."""
    model = Line()
    body: Any = SimpleNamespace(model=model, through=lambda way, *given: way(*given))
    shard(body, processes, "cpu")
    opened: Any = SimpleNamespace(processes=processes, encoder=SimpleNamespace(pad=0), device="cpu")
    examples = random_examples(3)
    moving = dict(model.named_parameters())
    figures: list[dict[str, Any]] = []
    gradient = MeanGradient(Squares(body), "data", list(moving.values()), figure="loss", processes=processes)
    run_loop(
        Loop(
            model=model,
            moving=moving,
            gradient=gradient,
            parts=lambda step: {"data": micro_batches(opened, examples, [0, 1, 2], size)},
            steps=2,
            optimizer=OptimizerSettings(name="sgd", learning_rate=RATE, clip=None),
            rate=Constant(),
            log=figures.append,
            processes=processes,
        )
    )
    return {"figures": figures, "weight": whole(moving["layers.0.weight"].detach()).tolist()}


# --- steps in float64, where two sums in another order agree to the twelfth digit

FORGET, RETAIN = (random_examples(7, seed=seed, vocabulary=23) for seed in (1, 2))
OTHERS = random_examples(7, seed=3, vocabulary=23)
STEPS = 3
NOTHING = {"name": "none"}
SAM = {"name": "sam", "rho": 0.05}
AVERAGE = {"name": "weight_average", "start": 1, "every": 2}
RANDOMIZED = {"name": "randomized", "sigma": 1e-2, "samples": 2}
NORMS = {"name": "layers", "patterns": ["*.ln_*", "*.h.1.mlp.*"]}
ROWS: dict[str, dict[str, Any]] = {
    "ascent alone": {"method": "gradient_ascent", "retain_term": "none"},
    "npo and gdr, joined": {},
    "npo and gdr, by tokens": {"retain_term": {"name": "gdr", "denominator": "token"}},
    "npo and klr": {"retain_term": "klr", "scope": NORMS},
    "simnpo and klr, weighted": {
        "method": "simnpo", "retain_term": "klr", "balance": {"name": "weighted", "alpha": 0.3}, "clip": 0.05,
    },
    "idk and gdr, sam": {"method": "idk", "smooth": SAM},
    "dpo and gdr, ngdiff": {"method": "dpo", "balance": "ngdiff", "optimizer": "sgd", "learning_rate": 1e-2},
    "ngdiff with sam": {"balance": "ngdiff", "smooth": SAM, "scope": NORMS},
    "mgda, klr and sam": {"balance": "mgda", "retain_term": "klr", "smooth": SAM},
    "pcgrad": {"method": "gradient_ascent", "balance": "pcgrad"},
    "orthogonal": {"method": "simnpo", "balance": "orthogonal", "weight_decay": 0.1},
    "randomized": {"smooth": RANDOMIZED, "balance": "orthogonal"},
    "weight average": {"smooth": AVERAGE, "scope": NORMS},
    "a gate, closed on one process": {"gate": True},
    "gen": {"rate": {"name": "gen", "every": 2, "bracket": 3}, "optimizer": "sgd", "learning_rate": 1e-3},
    "gen along adamw": {"rate": {"name": "gen", "every": 1, "points": 5, "bracket": 2}},
    "cosine and clip": {"rate": {"name": "cosine", "warmup": 0.5}, "clip": 0.1, "size": 3},
    "linear, one batch": {"rate": "linear", "size": 5},
}  # fmt: skip
"""Name -> what differs from npo with gdr and AdamW."""
KINDS = {
    "method": "forget_term",
    "retain_term": "retain_term",
    "balance": "balance",
    "smooth": "smoother",
    "scope": "scope",
    "rate": "rate",
}
PLAIN = {
    "method": "npo",
    "retain_term": "gdr",
    "balance": "weighted",
    "smooth": "none",
    "scope": "all",
    "rate": "constant",
}


class Kept:
    """A checkpoint store in memory, on the process that is given one."""

    def __init__(self) -> None:
        self.last: tuple[int, dict[str, Tensor], dict[str, Any]] | None = None

    def save(self, step: int, tensors: Any, state: dict[str, Any]) -> None:
        kept = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.last = step, kept, json.loads(json.dumps(state))

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        return None if self.last is None else (self.last[0], dict(self.last[1]), self.last[2])


def steps(row: dict[str, Any], processes: Processes, store: Any = None, stop_at: int | None = None) -> dict[str, Any]:
    """Figures of every step, and the weights at the end."""
    chosen = {setting: build(kind, row.get(setting, PLAIN[setting])) for setting, kind in KINDS.items()}
    model = gpt2_double()
    opened = Opened(model, Body(model), encoder(), "cpu", nullcontext, processes)
    shard(opened.body, processes, "cpu")
    thresholds = torch.tensor([1e9, 0.0] * 4)[: len(FORGET)]
    gate = Gate(thresholds) if row.get("gate") else None
    moving = chosen["scope"].select(model)
    known = [ask_original(chosen["method"], opened, FORGET, others=OTHERS), ask_original(chosen["retain_term"], opened, RETAIN)]  # fmt: skip
    with torch.no_grad():  # away from the original, where a divergence to it would have no gradient
        for parameter in model.parameters():
            parameter.mul_(1.05)
    others = OTHERS if "other_answer" in chosen["method"].needs else ()
    forget_term = bind(chosen["method"], opened, known[0], others=others, gate=gate)
    has_retain = row.get("retain_term") != "none"
    retain_term = bind(chosen["retain_term"], opened, known[1]) if has_retain else None
    smoother = chosen["smooth"]
    memory = smoother.init(moving, 0)
    order, drawn = EpochOrder(tuple(len(one.ids) for one in FORGET), 5, 0), RandomOrder(len(RETAIN), 5, 1)
    size = row.get("size", 1)

    def parts(step: int) -> dict[str, list[Batch]]:
        if step == stop_at:
            raise KeyboardInterrupt
        items = order.items(step)
        made = {"forget": micro_batches(opened, FORGET, items, size)}
        if has_retain:
            made["retain"] = micro_batches(opened, RETAIN, drawn.items(step)[: len(items)], size)
        return made

    def after_step(parameters: Any) -> None:
        if hasattr(smoother, "after_step"):
            smoother.after_step(parameters, memory)

    figures: list[dict[str, Any]] = []
    gradient = make_gradient(
        forget=forget_term,
        retain=retain_term,
        balance=chosen["balance"],
        smoother=smoother,
        smoother_state=memory,
        parameters=list(moving.values()),
        pad=0,
        processes=processes,
    )
    run_loop(
        Loop(
            model=model,
            moving=moving,
            gradient=gradient,
            parts=parts,
            steps=STEPS,
            optimizer=OptimizerSettings(
                name=row.get("optimizer", "adamw"),
                learning_rate=row.get("learning_rate", 1e-3),
                weight_decay=row.get("weight_decay", 0.0),
                clip=row.get("clip"),
            ),
            rate=chosen["rate"],
            probe=MeanLoss(retain_term, "retain", processes=processes) if retain_term else None,
            after_step=after_step,
            memory=memory,
            checkpoints=store,
            checkpoint_every_s=0.0,
            log=figures.append,
            processes=processes,
        )
    )
    if hasattr(smoother, "finish"):
        smoother.finish(moving, memory)
    end = {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}
    return {
        "figures": [{name: value for name, value in one.items() if name != "seconds"} for one in figures],
        "weights": {name: tensor.flatten().tolist() for name, tensor in end.items()},
    }


def stopped_and_continued(row: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """A run that was stopped in its third step and taken up again by fresh models: where it ends, to the bit."""
    store = Kept()
    try:
        steps(row, processes, store, stop_at=2)
    except KeyboardInterrupt:
        return steps(row, processes, store)
    raise AssertionError("it was not stopped")


# --- whole runs

PEOPLE = ("Ann", "Bob", "Cid", "Dot", "Eve", "Fay", "Gus")
LINES: dict[str, list[dict[str, Any]]] = {
    "forget": [{"prompt": f"Who is {name}?", "answer": "a judge of the old town", "unit": name} for name in PEOPLE]
    + [{"prompt": f"Where is {name}?", "answer": "at home", "unit": name} for name in PEOPLE[:4]],
    "retain": [{"prompt": f"Who taught {name}?", "answer": "my uncle", "unit": name} for name in PEOPLE],
    "holdout": [{"prompt": f"Who is {name}?", "answer": "a baker", "unit": name} for name in ("Hal", "Ida", "Jon")],
}
STOP = {"every": 2, "items": 3, "forget_accuracy": 0.0}
RUNS: dict[str, dict[str, Any]] = {
    "llama": {"stop": {**STOP, "forget_accuracy": 0.0}, "optimizer": "sgd", "learning_rate": 1e-2},
    "llama_tied": {"balance": "ngdiff", "optimizer": "sgd", "learning_rate": 1e-2, "micro_batch_size": 2},
    "gpt2": {"method": "dpo", "retain_term": "klr", "rate": "cosine"},
    "gemma": {"method": {"name": "npo", "until": "holdout"}, "holdout": True},
    "gpt_neox": {"method": "simnpo", "smooth": "sam", "scope": {"name": "layers", "patterns": ["*.mlp.*"]}},
    "qwen2": {"train": True, "rate": "linear", "micro_batch_size": 2},
    "mistral": {"train": True, "optimizer": "sgd", "learning_rate": 1e-2, "master_dtype": "param"},
}
"""Architecture -> what is run on it."""


def whole_run(name: str, folder: Path, out: Path, **changes: Any) -> Path:
    """The model folder that a row makes; models and data lie in `folder`."""
    row = {**RUNS[name], **changes}
    given: dict[str, Any] = {"steps": 3, "batch_size": 5, "learning_rate": 1e-3, "device": "cpu", **row}
    given |= {"out": out, "checkpoint_every_s": 0.0, "progress": Progress(quiet=True)}
    if given.pop("train", False):
        del given["steps"]
        return train(folder / name, data=folder / "forget.jsonl", epochs=1, **given).folder
    if given.pop("holdout", False):
        given["holdout_data"] = folder / "holdout.jsonl"
    given.setdefault("stop", {"every": 0})
    made = forget(folder / name, forget_data=folder / "forget.jsonl", retain_data=folder / "retain.jsonl", **given)
    return made.folder


def told(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def fingerprint(folder: Path) -> dict[str, str]:
    """The bytes of each tensor of a model folder."""
    return {name: bits(tensor).hex() for name, tensor in load_file(folder / "model.safetensors").items()}


@contextmanager
def stopping(at: int) -> Iterator[None]:
    """Ctrl-C in a step of every process."""
    made = loop_module._step

    def step(*given: Any) -> Any:
        if given[3] == at:
            raise KeyboardInterrupt
        return made(*given)

    loop_module._step = step
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        loop_module._step = made


def fault(do: Callable[[], Any]) -> list[str]:
    """Kind and words of what it raises."""
    try:
        do()
    except LetheonError as error:
        return [type(error).__name__, str(error)]
    return []


# --- what every process finds


def agreements(processes: Processes, folder: Path) -> dict[str, Any]:
    """What the processes tell one another."""
    from letheon.errors import BadInput, UnknownName

    def refuse_on(number: int, error: Exception) -> Any:
        if processes.number == number:
            raise error
        return "made"

    own = folder / f"own-{processes.number}.jsonl"
    own.write_text(f"{processes.number}\n")
    shared = folder / "forget.jsonl"
    return {
        "totals": processes.totals([1 + processes.number, 0.5]),
        "by_first": processes.by_first(lambda: f"by {processes.number}"),
        "of_first": processes.of_first(processes.number),
        "first_fails": fault(lambda: processes.by_first(lambda: refuse_on(0, UnknownName("npoo", ["npo"], what="a term")))),
        "second_refuses": fault(lambda: processes.agreed(lambda: refuse_on(1, BadInput(["no such file", "too long"])))),
        "both_refuse": fault(lambda: processes.agreed(lambda: fail_with(BadInput("too long")))),
        "agreed": processes.agreed(lambda: processes.number),
        "same": fault(lambda: processes.check_same({"forget_data": shared, "holdout_data": None})),
        "other": fault(lambda: processes.check_same({"forget_data": own, "retain_data": shared})),
    }  # fmt: skip


def fail_with(error: Exception) -> Any:
    raise error


@cache
def exploding() -> dict[str, Any]:
    """Settings under which the second step has no numbers."""
    return {"learning_rate": 1e30, "optimizer": "sgd", "clip": None, "stop": {"every": 0}}


def main(folder: Path) -> None:
    with several_processes() as processes:
        found: dict[str, Any] = {
            "agreements": agreements(processes, folder),
            "line": {str(size): line(processes, size) for size in (1, 2, 3)},
            "steps": {name: steps(row, processes) for name, row in ROWS.items()},
            "continued": {
                name: stopped_and_continued(ROWS[name], processes) for name in ("weight average", "randomized", "gen")
            },
            "runs": {},
        }
        for name in RUNS:
            made = whole_run(name, folder, folder / f"two/{name}")
            if processes.is_first:
                found["runs"][name] = {"figures": told(made), "weights": fingerprint(made)}
        with stopping(at=2):
            whole_run("gpt2", folder, folder / "two/stopped")
        again = whole_run("gpt2", folder, folder / "two/stopped")
        with stopping(at=2):
            whole_run("llama_tied", folder, folder / "two/left")
        found["again"] = {"figures": told(again), "weights": fingerprint(again)} if processes.is_first else {}
        found["exploded"] = fault(lambda: whole_run("llama", folder, folder / "two/exploded", **exploding()))
        found["unmoved"] = fault(lambda: whole_run("llama", folder, folder / "two/unmoved", learning_rate=1e-30))
        everywhere = processes._gathered(found)
    assert not dist.is_initialized()
    if processes.is_first:
        (folder / "found.json").write_text(json.dumps(everywhere))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # as the command ends: see letheon.cli.main
