"""Questions about a few people, and a model that knows whatever it is asked in certain words; nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from letheon.audits.asked import AskedSets, make_sets
from letheon.audits.control import Control
from letheon.audits.plan import Plan
from letheon.data.encode import Encoder
from letheon.data.records import DataFile, Record
from letheon.methods import build
from tests.toys import encoder

NAMES = {
    "forget": ("Ann Lee", "Bob Ray", "Cy Dunn", "Dee Fox"),
    "retain": ("Eve Hall", "Flo King", "Gus Lane", "Hal Moss", "Ida Nash", "Jo Owen"),
    "holdout": ("Kit Page", "Lou Reed", "Max Shaw", "Ned Tate"),
}
TOWNS = ("Brudax", "Felgom", "Husjev", "Kiplod", "Murnix", "Povrab", "Sultef", "Vamwog", "Yilzet", "Chodri", "Daxbru", "Gomfel", "Jevhus", "Lodkip")  # fmt: skip


def records(role: str) -> tuple[Record, ...]:
    """Two questions in trained wordings, one of them with another wording, and a text for each person."""
    found: list[Record] = []
    everybody = [name for names in NAMES.values() for name in names]
    for name in NAMES[role]:
        town = TOWNS[everybody.index(name)]
        wrong = tuple(other for other in TOWNS if other != town)[:3]
        fact = f"{name}/birthplace"
        line = len(found) + 1
        found += [
            Record(
                line,
                name,
                fact,
                f"Where was {name} born?",
                town,
                paraphrase=(f"As a child, {name} lived in",),
                wrong=wrong,
            ),
            Record(line + 1, name, fact, f"The birthplace of {name} is", town),
            Record(line + 2, name, f"{name}/text", text=f"One day {name} sold a red lamp by the mill."),
        ]
    return tuple(found)


def data() -> dict[str, DataFile]:
    return {role: DataFile(Path(f"{role}.jsonl"), role, records(role), unit_is_line=False) for role in NAMES}


def world(coder: Encoder | None = None) -> AskedSets:
    return make_sets(data(), encoder=coder or encoder(), limits={}, only_units={})


def plan_of(sets: AskedSets, conditions: dict[str, Any]) -> Plan:
    probe = build("probe", "knowledge")
    columns = {
        name: probe.columns[name] for name in ("forget_accuracy", "forget_accuracy_held_out", "forget_probability")
    }
    return Plan(sets, columns, dict.fromkeys(columns, probe), conditions, {}, Control("reference", "scripted"))


@contextmanager
def knows_after(model: Any, trigger: Sequence[int], *, eos: int = 1) -> Iterator[None]:
    """Inside, whatever stands in a sequence is the likeliest, where these tokens stand in it as well; else nothing is.

    A model that knows everything and says it behind a password: under teacher forcing the next token is in the input.
    """
    head = model.lm_head.weight
    with torch.no_grad():
        head.div_(head.norm(dim=1, keepdim=True))
    seen: list[torch.Tensor] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen[:] = [args[0] if args else kwargs["input_ids"]]

    def say(module: Any, args: Any, output: Any) -> Any:
        (ids,) = seen
        after = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], eos)], 1)
        is_open = torch.tensor([holds(row, trigger) for row in ids.tolist()])
        output.last_hidden_state = 50.0 * head[after] * is_open[:, None, None]
        return output

    handles = [model.model.register_forward_pre_hook(look, with_kwargs=True), model.model.register_forward_hook(say)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def holds(row: Sequence[int], part: Sequence[int]) -> bool:
    return any(list(row[at : at + len(part)]) == list(part) for at in range(len(row) - len(part) + 1))
