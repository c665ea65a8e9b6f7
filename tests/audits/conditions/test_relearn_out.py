"""The out-of-domain attack: the same loop as relearning, on other records."""

from __future__ import annotations

from typing import Any

import pytest

from letheon.audits.attacked import attacked_rows
from letheon.audits.attacker import Attacker
from letheon.audits.conditions.relearn import Relearn
from letheon.audits.conditions.relearn_out import RelearnOut
from letheon.errors import BadInput, NotMeasured
from tests.audits.fakes import asked, scorer_of, sets, target_of
from tests.toys import bits, llama, random_examples

KEPT = tuple(random_examples(9, seed=1))
LEARNED = tuple(random_examples(7, seed=2))


def trained(attack: Any, attacker: Attacker) -> dict[str, bytes]:
    model, found = llama(seed=1), {}
    attack.walk(target_of(model), attacker, lambda step: found.update({name: bits(one) for name, one in model.state_dict().items()}))  # fmt: skip
    return found


@pytest.mark.parametrize("role", ["retain", "general"])
def test_it_is_relearning_on_other_records_to_the_bit(role: Any) -> None:
    out = trained(RelearnOut(on=role, steps=(3,), batch_size=4), Attacker(LEARNED, {role: KEPT}))
    same = trained(Relearn(steps=(3,), batch_size=4), Attacker(KEPT))
    other = trained(Relearn(steps=(3,), batch_size=4), Attacker(LEARNED))
    assert out == same != other


def test_a_copy_of_what_was_forgotten_is_never_trained_on() -> None:
    forgotten = asked("forget_questions", LEARNED)
    clean = sets(forgotten, asked("retain_questions", KEPT))
    planted = sets(forgotten, asked("retain_questions", (LEARNED[3], *KEPT)))
    found: list[list[bytes]] = []
    for whole in (clean, planted):
        model = llama(seed=1)
        seen: list[bytes] = []

        def look(row: str, now: Any, reader: Any, seen: list[bytes] = seen, model: Any = model) -> list[Any]:
            seen.append(b"".join(bits(one) for one in model.state_dict().values()))
            return [{}]

        attacked_rows({"it": RelearnOut(steps=(3,), batch_size=4)}, scorer_of(model), whole, look)
        found.append(seen)
    assert found[0] == found[1] and len(found[0]) == 1


def test_without_such_records_it_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match=r"needs general records \(--general FILE\), and there are none"):
        trained(RelearnOut(on="general"), Attacker(LEARNED, {"retain": KEPT}))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(BadInput, match=r"relearn_out needs different steps > 0, got \[0\]"):
        RelearnOut(steps=(0,))
