"""The page of a benchmark says every figure of its log, and nothing that is not in it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from letheon.errors import BadInput
from letheon.reports.benchmarks import has_benchmark, rows, write_benchmark

FIGURES: list[dict[str, Any]] = [
    {"name": "forget.rougeL_recall.stem", "value": 0.4321987, "low": 0.4, "high": 0.5, "n": 40, "better": "low", "note": ""},
    {"name": "forget_quality.p", "value": None, "low": None, "high": None, "n": 0, "better": "", "note": "no reference: run <b>letheon train</b>"},
    {"name": "perplexity", "value": 2.5e-9, "low": None, "high": None, "n": 3, "better": "reference", "note": "few"},
]  # fmt: skip


def log(**changes: Any) -> dict[str, Any]:
    return {
        "schema": "letheon.benchmark/1",
        "settings": {"benchmark": {"name": "tofu"}, "seed": 0, "resamples": 1000},
        "model": {"path": "runs/<script>/1-forget", "sha256": "a" * 64},
        "reference": None,
        "data": {"forget10": {"path": "tofu/forget10.json", "sha256": "b" * 64}},
        "figures": FIGURES,
        **changes,
    }


def written(run: Path, held: Any) -> Path:
    run.mkdir(parents=True)
    (run / "benchmark.json").write_text(json.dumps(held))
    return run


def test_every_figure_stands_on_the_page_and_in_the_file(tmp_path: Path) -> None:
    run = written(tmp_path / "run", log())
    page, numbers = write_benchmark(run)
    text = page.read_text(encoding="utf-8")
    assert (page.name, numbers.relative_to(run).as_posix()) == ("benchmark.html", "figures/benchmark.csv")
    for said in ("forget.rougeL_recall.stem", "0.4322", "0.4000 .. 0.5000", "40", "not measured", "2.500e-09", "tofu"):
        assert said in text
    assert "a" * 64 in text and "tofu/forget10.json" in text
    back = list(csv.DictReader(io.StringIO(numbers.read_text(encoding="utf-8"))))
    assert [row["name"] for row in back] == [one["name"] for one in FIGURES]
    assert float(back[0]["value"]) == 0.4321987 and (back[1]["value"], back[1]["low"]) == ("", "")


def test_markup_stays_text_and_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    page, _ = write_benchmark(written(tmp_path / "run", log()))
    text = page.read_text(encoding="utf-8")
    assert "<b>letheon" not in text and "&lt;b&gt;letheon" in text and "&lt;script&gt;" in text
    assert "http://" not in text and "https://" not in text and "default-src 'none'" in text


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    run = written(tmp_path / "run", log())
    first = [path.read_bytes() for path in write_benchmark(run)]
    assert [path.read_bytes() for path in write_benchmark(run)] == first


def test_what_is_not_measured_is_said_with_its_reason_and_is_no_number() -> None:
    assert rows(FIGURES)[1] == ("forget_quality.p", "not measured", "", "0", FIGURES[1]["note"])
    assert rows(FIGURES)[2] == ("perplexity", "2.500e-09", "", "3", "reference; few")


@pytest.mark.parametrize(
    "held",
    [{}, log(schema="letheon.benchmark/0"), log(figures=[{"name": "x"}]), log(figures=None), log(settings={}), []],
)
def test_a_log_that_is_none_is_refused_with_a_remedy(held: Any, tmp_path: Path) -> None:
    run = written(tmp_path / "run", held)
    assert has_benchmark(run)
    with pytest.raises(BadInput, match=r"benchmark\.json is .*Run `letheon benchmark`"):
        write_benchmark(run)
    assert not (run / "benchmark.html").exists()


def test_without_a_log_there_is_none(tmp_path: Path) -> None:
    assert not has_benchmark(tmp_path)
    with pytest.raises(BadInput, match=r"benchmark\.json cannot be read.*Run `letheon benchmark` on the model first"):
        write_benchmark(tmp_path)
