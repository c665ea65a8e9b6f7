"""Every test runs in a home of its own, and away from the network; so do the commands that tests start."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Before any import: what is cached by content hash (the embedded world's models) is made once a session,
    # and nobody's own runs, keys or caches are read or written.
    home = tempfile.mkdtemp(prefix="letheon-tests-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ["LETHEON_HOME"] = home
    os.environ["LETHEON_CACHE"] = os.path.join(home, "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
