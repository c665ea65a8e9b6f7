"""The protocol of somebody who has the weights, whole: every required cell is asked, and what comes back convicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.audit import audit
from letheon.audits.verify import verify
from letheon.runs.progress import Progress
from tests.audits.mini import Mini


@pytest.mark.slow
def test_every_required_cell_of_standard_1_is_measured(mini: Mini, tmp_path: Path) -> None:
    found = audit(
        mini.reference, **mini.inputs, protocol="standard-1", out=tmp_path / "run", progress=Progress(quiet=True)
    )
    cells: list[Mapping[str, Any]] = [cell for cell in found.audit["cells"] if cell["required"]]
    convicting = [cell for cell in found.audit["cells"] if cell.get("convicts")]
    assert len(cells) + len(convicting) == found.audit["protocol"]["m"] and len(cells) > 55 and len(convicting) == 9
    assert {(cell["condition"], cell["column"]): cell["reason"] for cell in cells if cell["status"] != "measured"} == {}
    assert all("within" in cell for cell in cells)
    # Words in which nobody answers show nothing: the original is asked in the same ones.
    assert {"as_is", "insisted", "prefilled_sure", "german"} <= set(found.audit["scores"]["original"])
    assert not {"relearn_20", "gcg"} & set(found.audit["scores"]["original"])
    assert not verify(found.run).problems
