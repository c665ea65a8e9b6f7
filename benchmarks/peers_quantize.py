"""Our quantizers against llm-compressor and GPTQModel: the same model, the same tokens, the same grid; time and loss.

A Llama of 4 layers and width 512 is trained on worlds of people who never existed (kept under --out). Every arm is a
process of its own, started in turn, round after round; each round has calibration sequences of its own, the same for
all. What an arm wrote is read back by our reader and judged on held-out text: KL divergence to the model in full
precision and loss, nats a token. Ratios and differences are paired within a round, with Student's intervals.

Each peer lives in an environment of its own, made once (its file of requirements says what it needs):

    python -m venv ENV && ENV/bin/pip install torch==2.13.0 -r benchmarks/requirements-llmcompressor.txt
    OMP_NUM_THREADS=1 python benchmarks/peers_quantize.py --llmcompressor ENV/bin/python --gptqmodel ENV2/bin/python

A peer whose interpreter is not given is left out, and the result says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exam import interval, one_thread
from judging import Judge
from measuring import write
from transformers import LlamaForCausalLM

from letheon.data.encode import Encoder
from letheon.data.records import read_records
from letheon.models import inspect_model, load_model, load_tokenizer
from letheon.quantization.calibrate import make_calibration
from letheon.quantization.reading import load_any
from letheon.runs.progress import Progress
from letheon.tiny.model import new_tiny_model, tiny_config
from letheon.tiny.tokenizer import tiny_tokenizer
from letheon.tiny.world import make_world
from letheon.training.train import train

ARM = Path(__file__).with_name("peer_arm.py")
OURS = "letheon"
WORLDS, BLOCK, BATCH = 4, 250, 4
"""Worlds whose people are written about; tokens of a text, at least; texts a training step."""
PEERS = ("letheon", "llmcompressor", "gptqmodel")
GPTQ = tuple((peer, "gptq") for peer in PEERS)
GPTAQ = (("letheon", "gptaq"), ("gptqmodel", "gptaq"))
RTN, AWQ = (tuple((peer, method) for peer in PEERS) for method in ("rtn", "awq"))


@dataclass(frozen=True)
class Setting:
    """What all arms are asked for, which arms, and in how many of the rounds."""

    job: dict[str, Any]
    arms: tuple[tuple[str, str], ...]
    rounds: int = 99


SETTINGS = {
    "4 bits, groups of 128": Setting({"bits": 4, "group": 128, "order": "none"}, (*GPTQ, *GPTAQ, *RTN)),
    "3 bits, groups of 128": Setting({"bits": 3, "group": 128, "order": "none"}, (*GPTQ, *GPTAQ)),
    "2 bits, groups of 128": Setting({"bits": 2, "group": 128, "order": "none"}, (*GPTQ, *GPTAQ), rounds=1),
    "4 bits, a scale a row": Setting({"bits": 4, "group": "row", "order": "none"}, GPTQ, rounds=1),
    "4 bits, groups of 128, own order": Setting({"bits": 4, "group": 128, "order": "own"}, GPTQ, rounds=1),
    "2 bits, groups of 128, own order": Setting({"bits": 2, "group": 128, "order": "own"}, GPTQ, rounds=1),
    "4 bits, groups of 128, awq": Setting({"bits": 4, "group": 128, "order": "none"}, AWQ, rounds=1),
}
PEER_BATCH = {"letheon": 0, "llmcompressor": 1, "gptqmodel": 16}
"""Calibration sequences at once: the faster of 1 (the default of both) and 16, tried on 4,096 tokens. Ours chooses."""
FORMAT = {"gptq": "compressed_tensors", "gptaq": "gptq", "rtn": "compressed_tensors", "awq": "awq"}
"""What our arm writes."""


def corpus(out: Path) -> dict[str, Path]:
    """Texts about people of several worlds, shuffled: "train", and a twentieth of it that is held out."""
    files = {part: out / f"{part}.jsonl" for part in ("train", "held_out")}
    if not all(path.is_file() for path in files.values()):
        records = [
            each for seed in range(WORLDS) for part in ("train", "holdout") for each in make_world(seed).files[part]
        ]
        lines = [each.get("text") or f"{each['prompt']} {each['answer']}" for each in records]
        random.Random(0).shuffle(lines)
        count, texts = tiny_tokenizer(0), [""]
        count.model_max_length = 10**6  # these texts are longer than the world's own, and so is the model's window
        for line in dict.fromkeys(lines):
            if len(count(texts[-1])["input_ids"]) >= BLOCK:
                texts.append("")
            texts[-1] += f"{line}\n"
        held = len(texts) // 20
        out.mkdir(parents=True, exist_ok=True)
        for part, some in (("held_out", texts[:held]), ("train", texts[held:])):
            files[part].write_text("".join(json.dumps({"text": text}) + "\n" for text in some), encoding="utf-8")
    return files


def trained(out: Path, files: Mapping[str, Path], steps: int) -> Path:
    """The model, trained unless it is there."""
    base = out / "base"
    if not (base / "tokenizer.json").is_file():
        config = tiny_config(width=512, heads=8, initializer_range=0.03)
        config.max_position_embeddings = 512
        model: LlamaForCausalLM = new_tiny_model(0, config)
        model.save_pretrained(base)
        tiny_tokenizer(0).save_pretrained(base)
    texts = files["train"].read_bytes().count(b"\n")
    return train(
        base,
        data=files["train"],
        out=out / f"trained-{steps}",
        epochs=steps / -(-texts // BATCH),
        batch_size=BATCH,
        learning_rate=1e-3,
        betas=[0.9, 0.98],
        rate={"name": "cosine", "warmup": 0.06, "floor": 0.05},
        progress=Progress(),
    ).folder


def judge_of(folder: Path, files: Mapping[str, Path]) -> Judge:
    """Of held-out texts."""
    encoder = Encoder(load_tokenizer(folder), max_length=inspect_model(folder).window)
    examples = encoder.encode_all(read_records(files["held_out"], role="held out").records)
    return Judge(load_model(folder), {"texts": examples}, pad=encoder.pad)


def measured(
    peer: str, method: str, setting: Mapping[str, Any], model: Path, ids: Path, python: str, judge: Judge, place: Path
) -> dict[str, Any]:
    """One arm, once; kept in a file of `place`. What fails is told by its last lines."""
    answer = place / f"{peer}-{method}.json"
    if answer.is_file():
        return dict(json.loads(answer.read_text(encoding="utf-8")))
    work = place / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    job = {"peer": peer, "method": method, **setting, "model": str(model), "ids": str(ids), "batch": PEER_BATCH[peer]}
    job |= {"format": FORMAT[method], "saved": str(work / "saved"), "answer": str(work / "answer.json")}
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    # GPTQModel 7.7.0 builds a pool of half as many workers as there are cores, and on two cores asks it for two.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GPTQMODEL_CPU_WORKERS": "2"}
    if peer != OURS:
        environment.pop("PYTHONPATH", None)
    with (work / "log.txt").open("w", encoding="utf-8") as log:
        ended = subprocess.run(
            [os.path.abspath(python), str(ARM.resolve()), str(work / "job.json")],  # a link is the environment
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=work,  # GPTQModel leaves logs where it stands
            check=False,
        )
    if ended.returncode:
        lines = (work / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        found: dict[str, Any] = {"not_measured": [line for line in lines if line.strip()][-3:]}
    else:
        found = json.loads((work / "answer.json").read_text(encoding="utf-8"))
        found |= judge.figures(load_any(work / "saved"))
        found["folder_mib"] = sum(path.stat().st_size for path in (work / "saved").iterdir()) / 2**20
    shutil.rmtree(work)
    answer.write_text(json.dumps(found), encoding="utf-8")
    return found


def summary(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Of every arm the figures over rounds, and each peer's against ours of that method. A round: arm -> figures."""
    table: dict[str, Any] = {"of": {}, "against_ours": {}}
    for arm, first in rounds[0].items():
        failed = [one[arm]["not_measured"] for one in rounds if "not_measured" in one[arm]]
        if failed:
            table["of"][arm] = {"not_measured": failed[0]}
            continue
        names = [name for name, value in first.items() if isinstance(value, float)]
        table["of"][arm] = {name: interval([one[arm][name] for one in rounds], digits=7) for name in names}
        peer, method = arm.split(" ")
        ours = f"{OURS} {method}"
        if peer != OURS and not any("not_measured" in one[ours] for one in rounds):
            table["against_ours"][arm] = {
                "times_our_seconds": _ratio([one[arm]["quantize_s"] / one[ours]["quantize_s"] for one in rounds]),
                "times_our_cpu_seconds": _ratio(
                    [one[arm]["quantize_cpu_s"] / one[ours]["quantize_cpu_s"] for one in rounds]
                ),
                "times_our_seconds_with_saving": _ratio([_whole(one[arm]) / _whole(one[ours]) for one in rounds]),
                "kl_minus_ours": interval([one[arm]["kl"] - one[ours]["kl"] for one in rounds], digits=7),
                "loss_minus_ours": interval([one[arm]["loss"] - one[ours]["loss"] for one in rounds], digits=7),
            }
    return table


def _whole(found: Mapping[str, float]) -> float:
    return found["quantize_s"] + found["save_s"]


def _ratio(values: Sequence[float]) -> dict[str, float]:
    """Geometric mean, with an interval."""
    found = interval([math.log(value) for value in values], digits=6)
    return {name: round(math.exp(found[name]), 3) for name in ("mean", "lower", "upper") if name in found}


def main() -> None:
    """Train, then all arms in turn, round after round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/peers_quantize"))
    parser.add_argument("--llmcompressor", help="interpreter of an environment with llm-compressor")
    parser.add_argument("--gptqmodel", help="interpreter of an environment with GPTQModel")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    given = parser.parse_args()
    one_thread()
    given.out = given.out.resolve()
    pythons = {OURS: sys.executable, "llmcompressor": given.llmcompressor, "gptqmodel": given.gptqmodel}
    files = corpus(given.out)
    model = trained(given.out, files, given.steps)
    judge, text = judge_of(model, files), read_records(files["train"], role="calibration")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in given.settings}
    for number in range(given.rounds):
        place = given.out / f"{given.sequences}x{given.length}-{given.steps}" / f"round-{number}"
        place.mkdir(parents=True, exist_ok=True)
        drawn = make_calibration(
            text, load_tokenizer(model), sequences=given.sequences, length=given.length, seed=number
        )
        (place / "ids.json").write_text(json.dumps(drawn.ids.tolist()), encoding="utf-8")
        for name in given.settings:
            setting = SETTINGS[name]
            if number >= setting.rounds:
                continue
            (place / name).mkdir(exist_ok=True)
            row = {}
            for peer, method in setting.arms:
                if (python := pythons[peer]) is None:
                    continue
                row[f"{peer} {method}"] = one = measured(
                    peer, method, setting.job, model, place / "ids.json", python, judge, place / name
                )
                short = {key: round(one[key], 4) for key in ("quantize_s", "peak_mib", "kl") if key in one} or one
                print(f"round {number}, {name}: {peer} {method} {short}", flush=True)
            found[name].append(row)
    versions = {
        peer: next(
            (
                one["versions"]
                for rows in found.values()
                for row in rows
                for arm, one in row.items()
                if arm.startswith(peer) and "versions" in one
            ),
            "not run",
        )
        for peer in pythons
    }
    write(
        "peers_quantize",
        {
            "model": "Llama, 4 layers, width 512, trained for "
            f"{given.steps} steps; loss in full precision {judge.figures(judge.model)['loss']:.4f} nats a token",
            "calibration": f"{given.sequences} sequences of {given.length} tokens, another draw each round",
            "threads": "OMP_NUM_THREADS=1 in every arm; GPTQModel's own pool of two workers may use a second core",
            "rounds": given.rounds,
            "versions": versions,
            "settings": {
                name: {"rounds": len(rows), **SETTINGS[name].job} | summary(rows) for name, rows in found.items()
            },
        },
    )


if __name__ == "__main__":
    main()
