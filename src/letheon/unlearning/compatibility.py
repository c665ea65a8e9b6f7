"""Which choices go together: what a balance or a rate needs from the others, asked before anything is loaded.

A balance says of itself what it needs: `needs_retain` (two gradients), `fixes_norm` (the length of its step is its own
statement). A smoother that `averages_weights` does not go with a scope that `is_factored`, nor one that
`draws_everywhere` with a scope that `is_refreshed`. Any method may name the package that it needs and the extra that
brings it: `extra`. Unknown ones, such as a file of the user's own, need nothing.

Source: this project; what NGDiff needs is from arXiv:2410.22086.
Checked against: each refused combination, all of them at once, and the allowed neighbour of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from letheon.data.records import DataFile
from letheon.errors import BadInput, MissingExtra
from letheon.methods import name_of
from letheon.training.loop import FittedRate

USUAL_CLIP = 1.0
"""Largest gradient norm where nobody chose one."""


def check_together(
    methods: Mapping[str, Any],
    *,
    has_stop_rule: bool,
    has_step_limit: bool,
    master_dtype: str,
    forget_set: DataFile | None,
    retain: DataFile | None,
    weights: str = "auto",
) -> None:
    """Raise BadInput with every choice that does not go with the others.

    Args:
        methods: setting -> method; one that could not be built is absent, and nothing is said of it.
        has_stop_rule: whether looks are taken between steps.
        has_step_limit: whether a number of steps was given.
        master_dtype: where the weights are kept between steps.
        forget_set, retain: the data, where they could be read.
        weights: how the model is to be held in memory.
    """
    balance, rate = methods.get("balance"), methods.get("rate")
    needs_retain, is_fitted = getattr(balance, "needs_retain", False), isinstance(rate, FittedRate)
    problems: list[str] = [*_missing_extras(methods), *_unfit_smoothers(methods)]
    if "retain_term" in methods and name_of(methods["retain_term"]) == "none":
        remedy = "Choose a retain term such as gdr (--retain-term gdr --retain r.jsonl), or"
        if needs_retain:
            problems.append(
                f"balance {name_of(balance)!r} combines a forget and a retain gradient, and retain term 'none' gives "
                f"none. {remedy} --balance weighted"
            )
        if is_fitted:
            problems.append(
                f"rate {name_of(rate)!r} fits a parabola to the retain loss, and retain term 'none' has no loss. "
                f"{remedy} --rate constant"
            )
    if is_fitted and master_dtype == "param":
        problems.append(
            f"rate {name_of(rate)!r} looks at weights between those that the file can hold, and master_dtype 'param' "
            "rounds every step. Keep float32 masters (--master-dtype float32), or choose --rate constant"
        )
    if is_fitted and weights == "stored":
        problems.append(
            f"rate {name_of(rate)!r} looks at how the retain loss bends over one step, which a model held as it is "
            "stored (--weights stored) is too coarse for. Use --weights float32, or choose --rate constant"
        )
    endless = [f"balance {name_of(balance)!r}"] if getattr(balance, "fixes_norm", False) else []
    endless += [f"rate {name_of(rate)!r}"] if is_fitted else []
    is_gated = getattr(methods.get("method"), "until", "none") != "none"
    looks_at_facts = has_stop_rule and (forget_set is None or bool(forget_set.questions))
    if endless and not (looks_at_facts or has_step_limit or is_gated):
        problems.append(
            f"{' and '.join(endless)}: no stop rule. The steps do not fade as facts are forgotten, so the forget loss "
            "grows without bound. Let a look at the forget set's questions end the run (--stop.every 10), bound the "
            "forget term (--method.until), or give a step limit (--steps N)"
        )
    if needs_retain and forget_set is not None and retain is not None and _contents(forget_set) == _contents(retain):
        problems.append(
            f"forget set {forget_set.path} and retain set {retain.path} hold the same records: forget and retain "
            "gradients are opposite; nothing can be separated. Take what is to be forgotten out of the retain set"
        )
    if problems:
        raise BadInput(problems)


def _missing_extras(methods: Mapping[str, Any]) -> list[str]:
    """What pip has to install for these methods."""
    wanted = {setting: method.extra for setting, method in methods.items() if hasattr(method, "extra")}
    return [
        str(MissingExtra(f"{setting.replace('_', ' ')} {name_of(methods[setting])!r}", extra))
        for setting, (package, extra) in wanted.items()
        if find_spec(package) is None
    ]


def _unfit_smoothers(methods: Mapping[str, Any]) -> list[str]:
    """A smoother that does not go with what the scope lets move."""
    smoother, scope = methods.get("smooth"), methods.get("scope")
    problems: list[str] = []
    if getattr(smoother, "averages_weights", False) and getattr(scope, "is_factored", False):
        problems.append(
            f"smoother {name_of(smoother)!r} averages what moves over steps, and with scope {name_of(scope)!r} two "
            "factors move: the mean of each is not the factors of the mean weights. Choose another smoother such as "
            "sam, or another scope such as sure"
        )
    if getattr(smoother, "draws_everywhere", False) and getattr(scope, "is_refreshed", False):
        problems.append(
            f"smoother {name_of(smoother)!r} draws for every weight, and with scope {name_of(scope)!r} (refresh: step) "
            "only those move that a step chooses. Choose another smoother such as sam, or refresh: once"
        )
    return problems


def _contents(data: DataFile) -> set[object]:
    return {record.content for record in data.records}


def clip_for(balance: Any, asked: float | str | None) -> float | None:
    """The largest gradient norm: what was asked for, or by "auto" none for a balance that fixes the norm itself."""
    if isinstance(asked, str):
        return None if getattr(balance, "fixes_norm", False) else USUAL_CLIP
    return asked


def warnings_of(methods: Mapping[str, Any], *, asked_clip: float | str | None, batch_size: int) -> list[str]:
    """What is allowed and likely a mistake."""
    balance, retain_term = methods["balance"], methods["retain_term"]
    found: list[str] = []
    if getattr(balance, "fixes_norm", False):
        name = name_of(balance)
        if isinstance(asked_clip, float | int):
            found.append(
                f"clip {asked_clip} with balance {name!r}: its steps have a norm of up to 2 that says how far the two "
                "gradients agree; clipping rescales them and breaks the link between rate and step. "
                "--clip null leaves it off"
            )
        if any(need.startswith("reference_") for need in retain_term.needs):
            found.append(
                f"balance {name!r} brings the gradient of retain term {name_of(retain_term)!r} to length 1, and at the "
                "original that gradient is rounding noise: the first steps follow the noise. Retain term gdr has a "
                "gradient from the start"
            )
    if isinstance(methods["rate"], FittedRate) and batch_size == 1:
        found.append(
            f"rate {name_of(methods['rate'])!r} fits its parabola to the retain loss of one record, since batch_size "
            "is 1: the rate will follow single records. Use a larger batch, with micro_batch_size 1 if memory is short"
        )
    return found
