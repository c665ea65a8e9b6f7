"""A sample of a data set that is the same for the same file, and is not a sample of its order.

Files are written person by person, fact by fact, wording by wording. Every k-th line of such a file may be one wording
of each fact and none of the others, and then what is compared is wordings. So within a unit the order comes from a
hash of each item's name.

Source: this project.  Checked against: every unit is kept, the mix of wordings is that of the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def sample(units: Sequence[str], names: Sequence[str], limit: int) -> list[int]:
    """Positions of at most `limit` items, ascending: one of each unit, then a second of each, and so on.

    Args:
        units: the unit of each item.
        names: what an item goes by, such as its line; distinct.
        limit: most items. With fewer than there are units, some units are left out.
    """
    if len(names) <= limit:
        return list(range(len(names)))
    ranked = sorted(range(len(names)), key=lambda item: hashlib.sha256(names[item].encode()).digest())
    turns: dict[str, int] = {}
    turn_of: dict[int, int] = {}
    for item in ranked:
        turn_of[item] = turns.get(units[item], 0)
        turns[units[item]] = turn_of[item] + 1
    return sorted(sorted(ranked, key=turn_of.__getitem__)[:limit])  # a stable sort: within a turn, by hash
