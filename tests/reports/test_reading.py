from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from letheon.errors import BadInput
from letheon.reports.reading import printable, read_run


def test_a_line_torn_by_a_kill_is_left_out(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run")
    with (run / "1-forget" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 91, "forget_lo')
    assert len(read_run(run).metrics["1-forget"]) == 90


def test_stages_are_read_in_the_order_in_which_they_ran(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run")
    for label in ("10-train", "2-forget"):
        (run / label).mkdir()
        fakes.write_lines(run / label / "metrics.jsonl", fakes.make_metrics())
    assert list(read_run(run).metrics) == ["1-forget", "2-forget", "10-train"]


def test_the_signed_verdict_goes_before_the_audits_own(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run", "sham")
    assert read_run(run).verdict["word"] == "NOT DELETED"
    text = (run / "verdict.json").read_text().replace("NOT DELETED", "INCONCLUSIVE")
    (run / "verdict.json").write_text(text)
    assert read_run(run).verdict["word"] == "INCONCLUSIVE"


def test_without_a_verdict_the_time_is_that_of_the_last_stage(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run")
    assert read_run(run).created == fakes.CREATED
    (run / "verdict.json").unlink()
    assert read_run(run).created == "2026-11-21T09:40:10.000+00:00"


def test_names_hold_no_control_characters() -> None:
    assert printable("a\x00b\x1b\ud800 é") == "a\ufffdb\ufffd\ufffd é"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"audit\.json is not JSON: .*Run `letheon audit` on the model first\."),
        ("[]", r"audit\.json is a JSON list, not an object"),
        ('{"schema": "other/2"}', r"schema 'other/2', not 'letheon\.audit/1'"),
    ],
)
def test_a_file_that_is_no_audit_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(BadInput, match=said):
        read_run(tmp_path)
