"""One arm of peers_quantize.py, run by the interpreter of the package it measures: python peer_arm.py JOB.json

The job says whose (`peer`), what (`method`, `bits`, `group`, `order`), of which `model`, on which token `ids`, and
where the low-bit folder is `saved`; seconds, processor seconds and memory are
written into `answer`. Importing and
loading are not timed. Everything is float32 on the CPU, and the grid symmetric with its zero in the middle (asymmetric
for AWQ); damping is 0.01. order "none": columns as they stand; "own": what each package does by default.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DAMPING = 0.01
Parts = tuple[Callable[[], None], Callable[[], None]]
"""What rounds the model, and what writes it."""


def letheon(job: dict[str, Any], ids: torch.Tensor) -> Parts:
    """This project, by the parts that `letheon quantize` is made of."""
    from letheon.lowbit.architectures import model_layout
    from letheon.methods import build
    from letheon.models import inspect_model, load_model
    from letheon.quantization.assembling import low_bit_model
    from letheon.quantization.block_walk import Walk, Walked, walk
    from letheon.quantization.plain_rounding import round_plainly

    folder, target = inspect_model(Path(job["model"])), Path(job["saved"])
    writer = build("format", job["format"])
    settings = {"name": job["method"], "bits": job["bits"], "group": job["group"]}
    settings |= {
        "scheme": "asym" if job["method"] == "awq" else "sym_centred",
        "scale_dtype": writer.scale_dtype(folder),
    }
    if job["method"] in ("gptq", "gptaq"):
        settings |= {"damping": DAMPING, "act_order": "none" if job["order"] == "none" else "static"}
    quantizer, model = build("quantizer", settings), load_model(folder.path)
    layout, keep, stored = model_layout(model), target.with_name("blocks"), getattr(torch, writer.loads_as(folder))
    found: list[Walked] = []
    keep.mkdir()

    def work() -> None:
        if job["method"] == "rtn":
            found.append(round_plainly(model, layout, quantizer, keep))
        else:
            found.append(walk(Walk(model, layout, quantizer, ids, keep, stored=stored)))

    def save() -> None:
        target.mkdir()
        writer.write(low_bit_model(model, found[0].files, original=folder, card="", config={}), target)

    return work, save


def llmcompressor(job: dict[str, Any], ids: torch.Tensor) -> Parts:
    """llm-compressor's `oneshot`."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    how = {"strategy": "channel"} if job["group"] == "row" else {"strategy": "group", "group_size": job["group"]}
    weights = QuantizationArgs(num_bits=job["bits"], type="int", symmetric=job["method"] != "awq", **how)
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=weights)}
    shared: dict[str, Any] = {"config_groups": groups, "ignore": ["lm_head"]}
    if job["method"] == "gptq":
        order = None if job["order"] == "none" else "static"
        recipe = [GPTQModifier(**shared, dampening_frac=DAMPING, actorder=order)]
    else:
        recipe = [*([AWQModifier()] if job["method"] == "awq" else []), QuantizationModifier(**shared)]
    records = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    text = None if job["method"] == "rtn" else torch.utils.data.DataLoader(records, batch_size=job["batch"])

    def save() -> None:
        model.save_pretrained(job["saved"], save_compressed=True)
        tokenizer.save_pretrained(job["saved"])

    return lambda: oneshot(model=model, tokenizer=tokenizer, dataset=text, recipe=recipe), save


def gptqmodel(job: dict[str, Any], ids: torch.Tensor) -> Parts:
    """GPTQModel's `quantize`, which packs as it goes."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import GPTAQConfig, RTNConfig

    settings: dict[str, Any] = {"bits": job["bits"], "group_size": -1 if job["group"] == "row" else job["group"]}
    settings |= {"device": "cpu", "offload_to_disk": False}
    if job["method"] == "rtn":
        config = RTNConfig(**settings, sym=True)
    elif job["method"] == "awq":
        config = QuantizeConfig(**settings, sym=False, method="awq")
    else:
        settings |= {"sym": True, "desc_act": False, "act_group_aware": job["order"] == "own", "damp_percent": DAMPING}
        config = QuantizeConfig(**settings, gptaq=GPTAQConfig() if job["method"] == "gptaq" else None)
    # Its AWQ layers take no float32.
    model = GPTQModel.load(job["model"], config, dtype=torch.bfloat16 if job["method"] == "awq" else torch.float32)
    records = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids]
    text = None if job["method"] == "rtn" else records
    return (
        lambda: model.quantize(text, batch_size=job["batch"], backend=BACKEND.TORCH),
        lambda: model.save(job["saved"]),
    )


PEERS: dict[str, Callable[[dict[str, Any], torch.Tensor], Parts]] = {
    "letheon": letheon,
    "llmcompressor": llmcompressor,
    "gptqmodel": gptqmodel,
}


def peak_mib() -> float:
    """The most memory this process has had. (What getrusage says begins with the parent's.)"""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Load, round, write, answer."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    ids = torch.tensor(json.loads(Path(job["ids"]).read_text(encoding="utf-8")))
    work, save = PEERS[job["peer"]](job, ids)
    loaded_mib = peak_mib()
    began, used = time.perf_counter(), time.process_time()
    work()
    rounded, processor = time.perf_counter(), time.process_time()
    rounded_mib = peak_mib()
    save()
    answer = {
        "quantize_s": rounded - began,
        "quantize_cpu_s": processor - used,
        "save_s": time.perf_counter() - rounded,
        "loaded_mib": loaded_mib,
        "peak_mib": rounded_mib,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", job["peer"])},
    }
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
