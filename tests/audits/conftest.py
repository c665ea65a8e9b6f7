"""A small world with a target and a reference trained on it, once a session: seconds, and everything the audit asks for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.audit import AuditResult, audit
from letheon.quantization.pipeline import quantize
from letheon.runs.progress import Progress
from letheon.tiny.model import new_tiny_model, tiny_config
from letheon.tiny.world import WorldSize, write_world
from letheon.training.train import train
from letheon.unlearning.forget import forget
from tests.audits.mini import Mini
from tests.toys import tokenizer

SIZE = WorldSize(forget=8, retain=10, holdout=10, attributes=2, countries=6, texts=1)
RECIPE: dict[str, Any] = {
    "epochs": 22,
    "batch_size": 32,
    "learning_rate": 4e-3,
    "betas": [0.9, 0.98],
    "rate": {"name": "cosine", "warmup": 0.06, "floor": 0.05},
}
QUIET = Progress(quiet=True)
QUICKLY: dict[str, Any] = {"resamples": 1000, "progress": QUIET}


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    root = tmp_path_factory.mktemp("mini")
    files = write_world(root / "world", 0, SIZE)
    base = root / "base"
    new_tiny_model(0, tiny_config(layers=2, width=64, heads=2, initializer_range=0.08)).save_pretrained(base)
    tokenizer().save_pretrained(base)
    known = train(base, data=files["train"], out=root / "target", progress=QUIET, **RECIPE)
    unknown = train(
        base, data=files["train"], without=files["forget"], out=root / "reference", progress=QUIET, **RECIPE
    )
    return Mini(files, base, known.folder, unknown.folder)


@pytest.fixture(scope="session")
def audited(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """The target, which has forgotten nothing, against the reference."""
    out = tmp_path_factory.mktemp("audited") / "run"
    return audit(mini.target, reference=mini.reference, out=out, **mini.inputs, **QUICKLY)


@pytest.fixture(scope="session")
def forgotten(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of forget (gated, a few steps) and quantize, not audited. Nobody may change it: see `copied`."""
    run = tmp_path_factory.mktemp("forgotten") / "run"
    made = forget(
        mini.target,
        forget_data=mini.files["forget"],
        retain_data=mini.files["retain"],
        holdout_data=mini.files["holdout"],
        method={"name": "npo", "until": "holdout"},
        learning_rate=1e-3,
        steps=12,
        stop={"every": 0},
        out=run,
        progress=QUIET,
    )
    quantize(made.folder, method={"name": "rtn", "bits": 4}, progress=QUIET)
    return run


@pytest.fixture
def copied(forgotten: Path, tmp_path: Path) -> Path:
    """A run of one's own."""
    return Path(shutil.copytree(forgotten, tmp_path / "run"))


@pytest.fixture(scope="session")
def hidden(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shallow forgetting: pushed until the facts are not said any more, and no further."""
    made = forget(
        mini.target,
        forget_data=mini.files["forget"],
        retain_data=mini.files["retain"],
        learning_rate=2e-4,
        steps=80,
        out=tmp_path_factory.mktemp("hidden") / "run",
        progress=QUIET,
    )
    return made.folder
