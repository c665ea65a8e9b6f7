"""Published methods as rows of the product of choices, with the paper's settings.

A preset only fills in what the caller did not choose. Learning rates are the published scripts', meant for models of
billions of weights stored in bfloat16; a small model needs larger steps.

Source: each row names its own; a figure that was recalled and not looked up is marked so beside it.
Checked against: every row builds, and each of its settings stands in its source.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from letheon.errors import UnknownName


@dataclass(frozen=True)
class Preset:
    """A published method."""

    paper: str
    settings: dict[str, Any]
    measured: str = "not measured"
    """What the same terms did on the embedded world, at its own rates and steps, as the page of findings has it: shares
    of the forgotten facts that are left and of the retained ones that are kept. A preset's own rate is for models of
    billions of weights, and was not run."""


_MUSE = "MUSE, arXiv:2407.06460, scripts for News"
_ASCENT = {"name": "gradient_ascent"}
_NPO = {"name": "npo", "beta": 0.1, "reduction": "sum"}
_SHARED = {"learning_rate": 1e-5, "rate": "constant", "batch_size": 32, "balance": {"name": "weighted", "alpha": 1.0}}

_TOKENS = {"name": "gdr", "denominator": "token"}
# What the codes of TOFU, NPO and SimNPO share (their configurations): rate and decay, batches of 32 over all devices,
# the retain loss as a mean over tokens. Recalled: that the schedule is linear, behind a first epoch of warm-up.
_TOFU = {"learning_rate": 1e-5, "weight_decay": 0.01, "batch_size": 32, "retain_term": _TOKENS}


_SURE = {"scope": {"name": "sure", "percentile": 90.0}, "learning_rate": 5e-5}
"""What SURE changes in a baseline. Recalled: larger rates than the baselines', 5e-5 to 1e-4."""


def _sure(forget: dict[str, Any], retain: Any, measured: str = Preset.measured) -> Preset:
    settings = {"method": forget, "retain_term": retain, **_SHARED, **_SURE}
    return Preset("SURE, arXiv:2410.16454, as its paper has it; rate recalled", settings, measured)


def _linear(epochs: int) -> dict[str, Any]:
    """So many passes, the first of them warm-up."""
    return {"epochs": float(epochs), "rate": {"name": "linear", "warmup": 1 / epochs}}


PRESETS: dict[str, Preset] = {
    "ga": Preset(
        _MUSE,
        {"method": _ASCENT, "retain_term": "none", **_SHARED},
        measured="facts left 0.00, retained 0.00: NOT USABLE on three seeds",
    ),
    "ga-gdr": Preset(
        _MUSE,
        {"method": _ASCENT, "retain_term": {"name": "gdr", "denominator": "token"}, **_SHARED},
        measured="facts left 0.04, retained 0.36: NOT USABLE on three seeds",
    ),
    "ga-klr": Preset(
        _MUSE,
        {"method": _ASCENT, "retain_term": "klr", **_SHARED},
        measured="facts left 0.05, retained 0.22: NOT USABLE on two seeds of three, NOT DELETED on the other",
    ),
    "npo": Preset(
        _MUSE + "; NPO, arXiv:2404.05868",
        {"method": _NPO, "retain_term": "none", **_SHARED},
        measured="facts left 0.00, retained 0.00: NOT DELETED on two seeds of three, NOT USABLE on the other",
    ),
    "npo-gdr": Preset(
        _MUSE + "; NPO, arXiv:2404.05868",
        {"method": _NPO, "retain_term": {"name": "gdr", "denominator": "token"}, **_SHARED},
        measured="facts left 0.03, retained 0.95: NOT DELETED on three seeds, for membership",
    ),
    "npo-klr": Preset(
        _MUSE + "; NPO, arXiv:2404.05868",
        {"method": _NPO, "retain_term": "klr", **_SHARED},
        measured="facts left 0.04, retained 0.96: NOT DELETED on three seeds, for membership",
    ),
    "sure-ga-gdr": _sure(_ASCENT, _TOKENS),
    "sure-ga-klr": _sure(_ASCENT, "klr"),
    "sure-npo-gdr": _sure(
        _NPO,
        _TOKENS,
        measured="facts left 0.04, retained 0.97; 0.17 left after 20 steps of an attack, the plain row 0.08 (one seed)",
    ),
    "sure-npo-klr": _sure(
        _NPO,
        "klr",
        measured="facts left 0.04, retained 0.97; 0.13 left after 20 steps of an attack, the plain row 0.14 (one seed)",
    ),
    # Recalled: rho 0.01, rate and beta of the baseline, 10 epochs.
    "npo-sam": Preset(
        "NPO + SAM, arXiv:2502.05374, scripts for MUSE News, figures recalled",
        {
            "method": _NPO,
            "retain_term": _TOKENS,
            **_SHARED,
            "smooth": {"name": "sam", "rho": 0.01},
            "epochs": 10.0,
        },
        measured="mean recovery under an attack 0.06, without SAM 0.09, by training longer 0.06 (five seeds)",
    ),
    # Sums over tokens a record: with lengths normalised, the direction is that of the paper's mean over all tokens.
    "ngdiff": Preset(
        "NGDiff, arXiv:2410.22086",
        {
            "method": {"name": "gradient_ascent", "reduction": "sum"},
            "retain_term": {"name": "gdr", "denominator": "token"},
            "balance": "ngdiff",
            "rate": {"name": "gen", "points": 3, "every": 10, "smoothing": 0.9, "clamp": 2.0},
            "learning_rate": 1e-5,
            "weight_decay": 0.0,
            "clip": None,
        },
        measured="facts left 0.48 to 0.75 from starts of 1e-5 to 0.1, all retained (SGD, 150 steps, two seeds)",
    ),
    # beta, gamma and the forget term's weight: the README of its code, for forget05 (forget10: 4.5, 0, 0.125).
    # Recalled: 10 epochs (the code's configuration says 20 and has 10 beside it as a comment).
    "simnpo": Preset(
        "SimNPO, arXiv:2410.07163, code for TOFU forget05",
        {
            "method": {"name": "simnpo", "beta": 2.5, "gamma": 0.0},
            "balance": {"name": "weighted", "forget_weight": 0.1375, "alpha": 1.0},
            **_TOFU,
            **_linear(10),
        },
        measured="facts left 0.04, retained 1.00; 0.22 left after 20 steps of an attack (one seed)",
    ),
    # 5 epochs: the configuration of TOFU's code.
    "idk": Preset(
        "TOFU, arXiv:2401.06121, preference optimization",
        {"method": {"name": "idk"}, "balance": {"name": "weighted", "alpha": 1.0}, **_TOFU, **_linear(5)},
        measured="facts left 0.03, retained 1.00; 0.82 left after 20 steps of an attack (one seed): a refusal hides",
    ),
    # beta 0.1 over summed log-probabilities, and the factor 2 / beta: the code of NPO's authors. Recalled: 10 epochs.
    "dpo": Preset(
        "NPO, arXiv:2404.05868, its baseline DPO + retain loss on TOFU; DPO, arXiv:2305.18290",
        {
            "method": {"name": "dpo", "beta": 0.1, "reduction": "sum"},
            "balance": {"name": "weighted", "alpha": 1.0},
            **_TOFU,
            **_linear(10),
        },
    ),
    # All recalled: coefficient 6.5, alpha 1200, layer 7 of 32 (the default), batches of 4, 150 of them, 5e-5, no
    # clipping. The paper moves the down-projections of the layer and of the two below it alone; scope "all" moves all
    # up to the layer. Which names that is depends on the model's depth, so it is said in words.
    "rmu": Preset(
        "RMU (WMDP), arXiv:2403.03218, Zephyr-7B, figures recalled; its scope is narrower, of 32 layers with 7 driven: "
        '--scope layers --scope.patterns "*.layers.[5-7].mlp.down_proj.weight"',
        {
            "method": {"name": "rmu", "coefficient": 6.5},
            "retain_term": "activation",
            "balance": {"name": "weighted", "alpha": 1200.0},
            "learning_rate": 5e-5,
            "rate": "constant",
            "batch_size": 4,
            "steps": 150,
            "clip": None,
        },
    ),
}


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset. Raises UnknownName with the nearest one."""
    if name not in PRESETS:
        raise UnknownName(name, PRESETS, what="a preset", remedy="letheon methods --presets")
    return deepcopy(PRESETS[name].settings)
