"""A small world with both of its models, trained once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from letheon.audits.audit import AuditResult, audit
from letheon.recipes.tiny_models import TinyModels, tiny_models
from letheon.runs.progress import Progress
from letheon.tiny.world import WorldSize

QUIET = Progress(quiet=True)
SIZE = WorldSize(forget=6, retain=16, holdout=12, attributes=2, countries=4)


@pytest.fixture(scope="session")
def small() -> TinyModels:
    return tiny_models(0, SIZE, steps=260, progress=QUIET)


@pytest.fixture(scope="session")
def audited(small: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """The target itself, audited as if it had forgotten."""
    return audit_of(small, small.target, tmp_path_factory.mktemp("audited") / "run")


def audit_of(small: TinyModels, model: Path, out: Path, **changes: object) -> AuditResult:
    """An audit with everything given, but for the changes."""
    given: dict[str, object] = {
        "original": small.target,
        "reference": small.reference,
        "forget_data": small.files["forget"],
        "retain_data": small.files["retain"],
        "holdout_data": small.files["holdout"],
        "general_data": small.files["general"],
        **changes,
    }
    return audit(model, out=out, progress=QUIET, **{name: value for name, value in given.items() if value is not None})
