"""The report: one HTML file that needs nothing but itself, and the same bytes every time.

Markup in a prompt, an answer, a path or a name stays text; a policy in the page forbids scripts, frames and addresses
besides. Colours come from the page's style, so that figures follow it into the dark and onto paper.

Source: this project.  Checked against: an answer that is a script, byte equality, addresses, every cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from letheon.errors import BadInput
from letheon.reports import (
    figures,
    numbers,
    recovery,
    requests,
    roc,
    samples,
    scatter,
    story,
    summary,
    tables,
    verdicts,
)
from letheon.reports.reading import AuditedRun, read_run
from letheon.reports.templates import template
from letheon.reports.wording import moment
from letheon.runs.folder import write_text

REPORT_NAME = "report.html"


def report(run: Path) -> Path:
    """Write `run`/report.html from the audit in the run's folder, whole or not at all. Returns its path.

    Raises:
        BadInput: there is no audit in `run`, or a file in it cannot be read.
        CannotFinish: the disk refuses.
    """
    page = template("page.html.j2").render(page=_section(read_run(run), "run"))
    target = run / REPORT_NAME
    write_text(target, page)
    return target


def compare(
    runs: Sequence[Path],
    target: Path,
    *,
    title: str = "Deletions compared",
    intro: str = "",
    described: Sequence[str] = (),
) -> Path:
    """Write one page over several audited runs to `target`: a summary, a figure, and a section for each run.

    Args:
        runs: folders that hold an audit.json; a run goes by its folder's name.
        target: the HTML file.
        title: of the page.
        intro: plain text under the title; an empty line begins a new paragraph.
        described: a line on each run, in the same order, shown under its name; may be left out.
    Raises:
        BadInput: no runs, or what is wrong with each of those that cannot be read.
        CannotFinish: the disk refuses.
    """
    read = _read_all(runs)
    if described and len(described) != len(read):
        raise BadInput(f"{len(read)} runs to compare, but {len(described)} descriptions. Give one for each, or none.")
    shown = scatter.of_runs([(run.name, run.audit) for run in read], "runs")
    created = [run.created for run in read if run.created]
    page = template("compare.html.j2").render(
        title=title,
        intro=[paragraph.strip() for paragraph in intro.split("\n\n") if paragraph.strip()],
        created=moment(max(created)) if created else "",
        summary=summary.summary(read, described),
        figure=shown,
        queue=requests.of_queue(read),
        pages=[_section(run, f"run{position}") for position, run in enumerate(read, start=1)],
    )
    write_text(target, page)
    return target


def _read_all(runs: Sequence[Path]) -> list[AuditedRun]:
    read, problems = [], []
    for run in runs:
        try:
            read.append(read_run(run))
        except BadInput as error:
            problems += error.problems
    if problems or not read:
        raise BadInput(problems or "no runs to compare. Give the folders of at least one audited run.")
    return read


def _section(run: AuditedRun, key: str) -> dict[str, Any]:
    """Everything the template shows of one run; `key` begins the ids of its figures and anchors."""
    reasons = tables.Reasons()
    panels = tables.matrix(run.audit, reasons)
    training = [figures.curves(label, lines, f"{key}-{label_key(label)}") for label, lines in run.metrics.items()]
    return {
        "key": key,
        "name": run.name,
        "created": moment(run.created) if run.created else "",
        "protocol": (run.audit.get("protocol") or {}).get("name") or "",
        "verdict": verdicts.verdict(run),
        "asked": story.asked(run.audit),
        "privleak": story.privleak(run.audit),
        "requests": requests.of_run(run.audit),
        "panels": panels,
        "numbers": numbers.number_rows(run.audit),
        "reasons": reasons.rows(),
        "distances": figures.distances(run.audit, f"{key}-d"),
        "recovery": recovery.recovery(run.audit, f"{key}-r"),
        "roc": roc.roc(run.audit, f"{key}-m"),
        "trade_off": scatter.trade_off(run.audit, f"{key}-t"),
        "near_ties": story.near_ties(run.audit),
        "utility": numbers.utility_rows(run.audit),
        "training": [figure for figure in training if figure is not None],
        "samples": samples.samples(run),
        "by_cell": samples.samples_by_cell(run),
        **_provenance(run),
    }


def _provenance(run: AuditedRun) -> Mapping[str, Any]:
    return {
        "stages": story.stages(run),
        "software": story.software(run),
        "hashes": story.hashes(run),
        "settings": story.settings(run.audit),
        "signed_by": story.signed_by(run),
    }


def label_key(label: str) -> str:
    """A stage's label as part of an id: letters, digits and hyphens."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in label)
