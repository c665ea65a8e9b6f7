from __future__ import annotations

from types import ModuleType

import pytest

from letheon.methods import names
from letheon.reports.groups import GROUPS, group_of, in_groups


def test_every_condition_of_this_version_has_a_group_that_says_what_it_does() -> None:
    for name in names("condition"):
        assert group_of({"conditions": {name: {"attack": name}}}, name) not in ("attacks", "others"), name


@pytest.mark.parametrize(
    ("name", "held", "group"),
    [
        ("as_is", {}, "as_is"),
        ("shipped", {"code_match": None}, "ships"),
        ("int4_group32", {"code_match": 0.8}, "rounded"),
        ("my_grid", {"code_match": 0.8}, "rounded"),
        ("relearn_texts_20", {"attack": "relearn", "along": "steps", "value": 20}, "weights"),
        ("renamed", {"attack": "soft_prompt"}, "prompts"),
        ("prune_0.5", {}, "weights"),
        ("mine", {"attack": "mine"}, "attacks"),
        ("mine", {}, "others"),
        ("sampled_16", {}, "sampling"),
    ],
)
def test_a_row_is_grouped_by_its_attack_or_else_by_its_name(name: str, held: dict[str, object], group: str) -> None:
    assert group_of({"conditions": {name: held}}, name) == group


def test_none_is_lost_and_none_comes_twice(fakes: ModuleType) -> None:
    audit = fakes.make_large()
    conditions = list(audit["conditions"])
    found = in_groups(audit, conditions)
    assert sorted(name for _, members in found for name in members) == sorted(conditions)
    titles = list(GROUPS.values())
    assert [title for title, _ in found] == sorted((title for title, _ in found), key=titles.index)
    for _, members in found:
        assert members == sorted(members, key=conditions.index)
