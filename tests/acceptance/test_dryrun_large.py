"""What forgetting in a model of 8 billion weights takes, by dry runs over a folder that holds nothing but its shapes.

The folder is that of Llama 3.1 8B in bfloat16: its configuration, and a header in front of 16 GB of zeros that are not
on the disk. Texts of 512 tokens, one forget and one retain text a pass. Figures are printed (pytest -s).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from letheon.recipes import dryrun, rehearsal
from letheon.recipes.dryrun import DryRun, dry_run
from tests.toys import tokenizer, write_lines

pytestmark = pytest.mark.slow

CONFIG = LlamaConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, max_position_embeddings=512, tie_word_embeddings=False, dtype="bfloat16",
    pad_token_id=0, eos_token_id=1, bos_token_id=None, architectures=["LlamaForCausalLM"],
)  # fmt: skip


def write_shapes(folder: Path, config: Any) -> int:
    """A model folder whose weights are a header and a hole; returns how many weights it says it has."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    header: dict[str, Any] = {}
    end = 0
    for name, parameter in model.named_parameters():
        start, end = end, end + 2 * parameter.numel()
        header[name] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return end // 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    (folder / "m").mkdir()
    assert 8.0e9 < write_shapes(folder / "m", CONFIG) < 8.1e9
    assert sum(512 * file.stat().st_blocks for file in (folder / "m").iterdir()) < 50e6  # on the disk
    for role in ("f", "r"):
        lines = [{"text": f"{role.upper()}ann{number} " + "lives by the old mill " * 200} for number in range(4)]
        write_lines(folder / f"{role}.jsonl", lines)
    return folder


def needed(place: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> DryRun:
    monkeypatch.setattr(rehearsal, "_CALIBRATION_S", 0.001)
    monkeypatch.setattr(dryrun, "_free_bytes", lambda device: 80 * 10**9)
    given = {"model": place / "m", "forget_data": place / "f.jsonl", "retain_data": place / "r.jsonl", "out": out}
    more = {"steps": 100, "batch_size": 2, "micro_batch_size": 1, "stop": {"every": 0}, "device": "cpu"}
    found = dry_run("forget", {**given, **more, **settings})
    assert found.peak is not None, found.warnings
    print(
        f"\n{settings}: {found.peak / 1e9:.1f} GB", {name: round(size / 1e9, 1) for name, size in found.memory.items()}
    )
    return found


@pytest.mark.parametrize(
    ("settings", "room"),
    [
        ({"scope": {"name": "sure", "percentile": 90.0}, "weights": "stored"}, 40e9),
        ({"scope": "adapter", "weights": "stored"}, 40e9),
        ({"master_dtype": "param", "weights": "stored"}, 80e9),
    ],
    ids=["sure", "adapter", "param"],
)
def test_it_fits(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, room: float) -> None:
    found = needed(place, tmp_path / "run", monkeypatch, **settings)
    assert found.peak is not None and found.peak < room


def test_float32_copies_of_everything_do_not_fit_and_the_remedies_are_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = needed(place, tmp_path / "run", monkeypatch)
    assert found.peak is not None and found.peak > 120e9
    [text] = [text for text in found.warnings if "room for" in text]
    assert "GB is more than cpu has room for. Smaller batches would not help" in text
    assert "--scope sure" in text and "--scope adapter" in text and "--master-dtype param --weights stored" in text
