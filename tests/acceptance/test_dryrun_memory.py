"""The memory that a dry run foretells, on a model of more than 50 M parameters: within a quarter of the measured peak.

Random weights, since only sizes matter. Both figures are printed (pytest -s); a few minutes on two cores, hence `slow`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from letheon.recipes import verbs
from letheon.recipes.dryrun import dry_run
from letheon.runs.progress import Progress
from letheon.tiny.model import new_tiny_model
from letheon.training.memory import PeakBytes
from tests.toys import tokenizer, write_lines

pytestmark = pytest.mark.slow

DATA = {"forget_data": "f.jsonl", "retain_data": "r.jsonl"}
STEPS = {"batch_size": 8, "learning_rate": 1e-3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("train", {"data": "r.jsonl", "epochs": 1, **STEPS}),
    "forget, npo + klr": ("forget", {**DATA, "retain_term": "klr", "steps": 2, **STEPS, "stop": {"every": 0}}),
    "quantize": ("quantize", {}),
    "audit": ("audit", {**DATA, "original": "m", "resamples": 1000}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 58 M parameters with the vocabulary of a usual tokenizer, and a few questions and texts."""
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        max_position_embeddings=256, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    model = new_tiny_model(0, config)
    assert sum(parameter.numel() for parameter in model.parameters()) >= 50_000_000
    model.save_pretrained(folder / "m")
    tokenizer().save_pretrained(folder / "m")
    for role in ("f", "r"):
        questions = [
            {
                "prompt": f"Who is {role.upper()}ann{number}?",
                "answer": "a potter by the river",
                "unit": f"{role}{number}",
            }
            for number in range(12)
        ]
        texts = [{"text": f"{role.upper()}ann{number} " + "lives by the old mill " * 8} for number in range(4)]
        write_lines(folder / f"{role}.jsonl", [*questions, *texts])
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_within_a_quarter(
    case: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path / "cache"))
    verb, settings = CASES[case]
    began = time.monotonic()
    found = dry_run(verb, {"model": "m", "out": str(tmp_path / "run"), **settings})
    assert found.peak is not None, found.warnings
    middle = time.monotonic()
    with PeakBytes() as counted:
        verbs.function(verb)("m", out=str(tmp_path / "run"), progress=Progress(quiet=True), **settings)
    ended = time.monotonic()
    print(
        f"{case}: estimate {found.peak / 1e6:.0f} MB, measured {counted.peak / 1e6:.0f} MB, "
        f"ratio {found.peak / counted.peak:.3f}; time: estimate {found.seconds:.0f} s, "
        f"measured {ended - middle:.0f} s; the dry run took {middle - began:.0f} s"
    )
    assert found.peak / counted.peak == pytest.approx(1.0, abs=0.25)
