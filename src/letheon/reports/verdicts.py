"""The verdict as a page says it: its word, one sentence with the counts it rests on, the reasons and the scope.

Source: this project.  Checked against: one made-up run a word, and an audit without any of the four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from letheon.errors import BadInput
from letheon.reports.reading import AuditedRun
from letheon.reports.wording import JUDGEMENTS, PLAIN, VERDICTS, Judged, counted, label_of_condition, listed, name_of

Audit = Mapping[str, Any]
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class VerdictShown:
    """The verdict as the page shows it."""

    word: str
    judged: Judged
    sentence: str
    reasons: list[str]
    scope: str


def verdict(run: AuditedRun) -> VerdictShown:
    """Word, one sentence with its reach, the reasons as they were signed.

    Raises BadInput when the word is none of the four: the files were damaged.
    """
    found, audit = run.verdict, run.audit
    word = str(found.get("word"))
    if word not in VERDICTS:
        raise BadInput(
            f"the verdict of run {run.name} is {word!r}, none of {', '.join(VERDICTS)}. Run `letheon audit` again"
        )
    reasons = [str(reason) for reason in found.get("reasons") or []]
    return VerdictShown(word, VERDICTS[word], _sentence(word, audit), reasons, str(found.get("scope") or ""))


def _sentence(word: str, audit: Audit) -> str:
    """What the word says, with the counts it rests on."""
    required = required_cells(audit)
    conditions = list(dict.fromkeys(label_of_condition(audit, cell["condition"]) for cell in required))
    every = counted(len(required), "required cell")
    under = f"{every} under {counted(len(conditions), 'condition')}"
    found, besides = _traces(required), _traces([cell for cell in audit.get("cells", []) if cell.get("convicts")])
    missing = sum(cell["status"] == "not measured" for cell in required)
    undecided = sum(cell.get("judgement") == "open" for cell in required)
    lost = [row for row in audit.get("utility", []) if row.get("judgement") == "lost"]
    alone = audit.get("requests", [])
    convicted = [str(at) for at, one in enumerate(alone, start=1) if one.get("word") == "NOT DELETED"]
    if word == "NOT DELETED" and not found and convicted:
        of_which = f"request{'s' if len(convicted) > 1 else ''} {listed(convicted)}"
        return f"Traces of {of_which} alone, which the mean over all {len(alone)} requests hides."
    if word == "NOT DELETED" and besides and not found:
        where = list(dict.fromkeys(label_of_condition(audit, cell["condition"]) for cell in besides))
        return f"Traces of the forget set in none of {every}, and where an answer can only convict: {'; '.join(where)}."
    if word == "NOT DELETED":
        where = list(dict.fromkeys(label_of_condition(audit, cell["condition"]) for cell in found))
        some = f"under {len(where)} of {counted(len(conditions), 'condition')}: {'; '.join(where)}"
        under = some if len(where) < len(conditions) else f"under every one of {counted(len(conditions), 'condition')}"
        return f"Traces of the forget set in {len(found)} of {every}, {under}."
    if word == "NOT USABLE":
        what = "; ".join(name_of(audit, row["column"]) for row in lost)
        return f"No trace found in {under}, but the model is damaged. Fallen by more than the margin: {what}."
    if word == "DELETED":
        return f"No evidence above the margin in any of {under}, and everything else kept within its margin."
    unseen = counted(count, "request") if (count := sum(bool(one.get("unseen")) for one in alone)) else ""
    why = [
        *([f"{undecided} not decided either way"] if undecided else []),
        *([f"{missing} not measured"] if missing else []),
        *([f"{unseen} of which nothing could have been seen"] if unseen else []),
    ]
    return f"No trace found, but not enough to say more: of {under}, {listed(why) or 'too few apply'}."


def _traces(cells: Sequence[Cell]) -> list[Cell]:
    return [cell for cell in cells if JUDGEMENTS.get(cell.get("judgement") or "", PLAIN).tone == "found"]


def required_cells(audit: Audit) -> list[Cell]:
    """The cells that the verdict rests on."""
    return [cell for cell in audit.get("cells", []) if cell.get("required")]
