"""Conditions in groups with headings: as it is, rounded, what ships, attacks by what they change, sampling.

Source: this project.  Checked against: every condition of this version has a group; none is lost or shown twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from letheon.reports.wording import is_number

Audit = Mapping[str, Any]
GROUPS = {
    "as_is": "As it is",
    "rounded": "Rounded",
    "ships": "What ships",
    "weights": "Attacks on weights",
    "activations": "Attacks on activations",
    "prompts": "Attacks on prompts",
    "sampling": "Sampling",
    "attacks": "Other attacks",
    "others": "Other conditions",
}
"""Group -> its heading, in the order of the page."""
_NAMED = {
    "as_is": ("as_is",),
    "ships": ("shipped",),
    "rounded": ("int8", "int4", "int3", "int2", "fp4", "nf4", "quantized", "quantize_with"),
    "weights": ("relearn", "retrain_folds", "prune", "interpolate"),
    "activations": ("direction_ablation", "latent_attack", "linear_probe", "logit_lens"),
    "prompts": (
        "soft_prompt", "gcg", "suffix", "prefill", "prefix", "template", "many_shot", "in_context", "mask", "language",
        "paraphrase", "reverse", "multi_turn", "choices",
    ),
    "sampling": ("sampl",),
}  # fmt: skip
"""Group -> how the names of its attacks or conditions begin."""


def group_of(audit: Audit, condition: str) -> str:
    """The group's name: by the attack where the audit says which one it is, else by the row's own name."""
    held = audit.get("conditions", {}).get(condition, {})
    attack = str(held.get("attack") or "")
    for group, names in _NAMED.items():
        if (attack or condition).startswith(names):
            return group
    if attack:
        return "attacks"
    return "rounded" if is_number(held.get("code_match")) else "others"


def in_groups(audit: Audit, conditions: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(heading, its conditions in their order), without empty groups."""
    of = {name: group_of(audit, name) for name in conditions}
    found = [(title, [name for name in conditions if of[name] == group]) for group, title in GROUPS.items()]
    return [(title, names) for title, names in found if names]
