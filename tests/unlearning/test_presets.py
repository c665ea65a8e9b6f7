"""The published rows: each builds, each says what its source says."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from letheon.errors import UnknownName
from letheon.methods import build
from letheon.settings import fill
from letheon.training.rates.linear import Linear
from letheon.unlearning.balances.ngdiff import NGDiff
from letheon.unlearning.forget import METHODS, ForgetSettings
from letheon.unlearning.forget_terms.dpo import DPO
from letheon.unlearning.forget_terms.gradient_ascent import GradientAscent
from letheon.unlearning.forget_terms.idk import IDK
from letheon.unlearning.forget_terms.npo import NPO
from letheon.unlearning.forget_terms.rmu import RMU
from letheon.unlearning.forget_terms.simnpo import SimNPO
from letheon.unlearning.layers import layer_of
from letheon.unlearning.presets import PRESETS, preset
from letheon.unlearning.retain_terms.activation import Activation
from letheon.unlearning.retain_terms.gdr import GDR
from letheon.unlearning.retain_terms.klr import KLR
from letheon.unlearning.retain_terms.none import NoRetain
from letheon.unlearning.scopes.layers import Layers
from letheon.unlearning.scopes.sure import Sure
from letheon.unlearning.smoothers.sam import SAM
from tests.toys import llama


def settings(name: str) -> ForgetSettings:
    return fill(ForgetSettings, {"model": "m", "forget_data": "f", **preset(name)}, where="forget")


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_row_builds(name: str) -> None:
    made = settings(name)
    for setting, kind in METHODS.items():
        build(kind, getattr(made, setting))
    assert PRESETS[name].paper


def test_the_six_published_baselines_are_there() -> None:
    assert {"ga", "ga-gdr", "ga-klr", "npo", "npo-gdr", "npo-klr"} <= set(PRESETS)


@pytest.mark.parametrize("name", ["ga", "ga-gdr", "ga-klr", "npo", "npo-gdr", "npo-klr"])
def test_each_is_what_the_papers_trained(name: str) -> None:
    made = settings(name)
    term, retain = build("forget_term", made.method), build("retain_term", made.retain_term)
    # The papers: NPO with beta 0.1 over the summed log-probability; GDR is the mean over tokens; alpha 1.
    assert term == (NPO(beta=0.1, reduction="sum") if name.startswith("npo") else GradientAscent())
    wanted = {"gdr": GDR(denominator="token"), "klr": KLR(denominator="token")}
    assert retain == wanted.get(name.partition("-")[2], NoRetain())
    assert build("balance", made.balance).weights == (1.0, 1.0)
    assert (made.learning_rate, made.rate, made.batch_size) == (1e-5, "constant", 32)


@pytest.mark.parametrize("name", ["ga-gdr", "ga-klr", "npo-gdr", "npo-klr"])
def test_sure_is_a_baseline_in_few_rows_at_a_larger_rate(name: str) -> None:
    base, sure = settings(name), settings(f"sure-{name}")
    assert build("scope", sure.scope) == Sure(percentile=90.0)
    assert sure.learning_rate == 5 * base.learning_rate
    assert replace(sure, scope=base.scope, learning_rate=base.learning_rate) == base


def test_npo_sam_is_npo_gdr_on_flat_ground() -> None:
    base, flat = settings("npo-gdr"), settings("npo-sam")
    assert build("smoother", flat.smooth) == SAM(rho=0.01)
    assert replace(flat, smooth=base.smooth, epochs=base.epochs) == base


def test_ngdiff_is_what_its_paper_trained() -> None:
    made = settings("ngdiff")
    assert build("forget_term", made.method) == GradientAscent(reduction="sum")
    assert build("retain_term", made.retain_term) == GDR(denominator="token")
    assert build("balance", made.balance) == NGDiff()
    rate = build("rate", made.rate)
    assert (rate.points, rate.every, rate.smoothing, rate.clamp) == (3, 10, 0.9, 2.0)
    assert (made.clip, made.weight_decay, made.learning_rate) == (None, 0.0, 1e-5)


def test_the_other_forget_terms_are_what_their_papers_trained() -> None:
    made = {name: settings(name) for name in ("simnpo", "idk", "dpo", "rmu")}
    terms = {name: build("forget_term", each.method) for name, each in made.items()}
    assert terms == {
        "simnpo": SimNPO(beta=2.5, gamma=0.0),
        "idk": IDK(),
        "dpo": DPO(beta=0.1, reduction="sum"),
        "rmu": RMU(layer=None, coefficient=6.5),
    }
    weights = {name: build("balance", each.balance).weights for name, each in made.items()}
    assert weights == {"simnpo": (0.1375, 1.0), "idk": (1.0, 1.0), "dpo": (1.0, 1.0), "rmu": (1.0, 1200.0)}
    for name, epochs in (("simnpo", 10.0), ("idk", 5.0), ("dpo", 10.0)):
        each = made[name]
        assert build("retain_term", each.retain_term) == GDR(denominator="token")
        assert (each.learning_rate, each.weight_decay, each.batch_size, each.epochs) == (1e-5, 0.01, 32, epochs)
        assert build("rate", each.rate) == Linear(warmup=1 / epochs)  # the first epoch
    rmu = made["rmu"]
    assert build("retain_term", rmu.retain_term) == Activation()
    assert (rmu.learning_rate, rmu.batch_size, rmu.steps, rmu.clip) == (5e-5, 4, 150, None)
    assert "recalled" in PRESETS["rmu"].paper


def test_the_row_of_rmu_says_how_to_give_its_narrow_scope() -> None:
    """Which names fit depends on the model's depth, so the row itself cannot hold it."""
    paper = PRESETS["rmu"].paper
    [pattern] = re.findall(r'--scope layers --scope\.patterns "(.*)"', paper)
    model = llama(layers=32, width=8)
    assert list(Layers(patterns=(pattern,)).select(model)) == [
        f"model.layers.{n}.mlp.down_proj.weight" for n in (5, 6, 7)
    ]
    assert layer_of(RMU(), beside=RMU(), depth=32) == 7


def test_what_is_handed_out_does_not_change_the_table() -> None:
    preset("npo-gdr")["method"]["beta"] = 7.0
    preset("npo-gdr")["learning_rate"] = 7.0
    assert preset("npo-gdr")["method"]["beta"] == 0.1 and preset("npo-gdr")["learning_rate"] == 1e-5


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'npo-gd' is not a preset\. Did you mean 'npo-gdr'\? .*--presets"):
        preset("npo-gd")
