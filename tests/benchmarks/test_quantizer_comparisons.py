"""What the comparisons of quantizers publish: the judge, the sign of a difference, the fitted and the fresh tokens."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from letheon.data.encode import Example
from letheon.tiny.model import new_tiny_model, tiny_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """A script of benchmarks/, by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(request.param)


@pytest.mark.parametrize("module", ["judging"], indirect=True)
def test_divergence_and_loss_are_those_of_each_labelled_token_by_itself(module: ModuleType) -> None:
    before, now = (new_tiny_model(seed, tiny_config(layers=1, width=32)).eval() for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    parts = {
        part: [
            Example(tuple(torch.randint(2, 700, (length,), generator=generator).tolist()), labelled_from)
            for length, labelled_from in sizes
        ]
        for part, sizes in {"facts": [(9, 6), (5, 4)], "texts": [(12, 1), (7, 1), (12, 1)]}.items()
    }
    found = module.Judge(before, parts, pad=0).figures(now)
    divergence, loss, tokens = {}, {}, {}
    for part, examples in parts.items():
        pairs = []
        for example in examples:
            ids = torch.tensor([example.ids])
            with torch.no_grad():
                p, q = (torch.log_softmax(model(ids).logits[0].double(), -1) for model in (before, now))
            pairs += [(p[at - 1], q[at - 1], example.ids[at]) for at in range(example.labelled_from, len(example.ids))]
        divergence[part] = sum(float((p.exp() * (p - q)).sum()) for p, q, _ in pairs)
        loss[part] = sum(-float(q[right]) for _, q, right in pairs)
        tokens[part] = len(pairs)
    assert found["kl_facts"] == pytest.approx(divergence["facts"] / tokens["facts"], rel=1e-4)
    assert found["loss_texts"] == pytest.approx(loss["texts"] / tokens["texts"], rel=1e-4)
    assert found["kl"] == pytest.approx(sum(divergence.values()) / sum(tokens.values()), rel=1e-4)
    assert found["loss"] == pytest.approx(sum(loss.values()) / sum(tokens.values()), rel=1e-4)
    assert module.Judge(before, parts, pad=0).figures(before)["kl"] == 0


@pytest.mark.parametrize("module", ["peers_quantize"], indirect=True)
def test_a_slower_and_worse_peer_has_a_ratio_above_1_and_a_positive_difference(module: ModuleType) -> None:
    figures = {"quantize_s": 2.0, "quantize_cpu_s": 1.0, "save_s": 1.0, "kl": 0.5, "loss": 1.0}
    slower = {name: value * (2 if name.startswith("quantize") else 1) for name, value in figures.items()}
    rounds = [
        {"letheon gptq": figures, "gptqmodel gptq": {**slower, "kl": 0.5 + more}, "llmcompressor gptq": {"not_measured": ["x"]}}
        for more in (0.1, 0.3)
    ]  # fmt: skip
    found = module.summary(rounds)
    against = found["against_ours"]["gptqmodel gptq"]
    assert against["times_our_seconds"]["mean"] == pytest.approx(2.0)
    assert against["times_our_seconds_with_saving"]["mean"] == pytest.approx(5 / 3, abs=1e-3)
    assert against["kl_minus_ours"]["mean"] == pytest.approx(0.2)
    assert found["of"]["llmcompressor gptq"] == {"not_measured": ["x"]}
    assert "llmcompressor gptq" not in found["against_ours"]


@pytest.mark.parametrize("module", ["quantizer_layer"], indirect=True)
def test_drift_alone_tells_gptaq_from_gptq_and_fresh_tokens_from_fitted_ones(module: ModuleType) -> None:
    still = module.layer_errors(0, noise=0.0, tokens=320)
    assert still["gptaq"] == still["gptq"] == still["refit 1"]
    drifted = module.layer_errors(0, noise=0.3, tokens=320)
    assert drifted["refit 1"]["calibration"] < drifted["gptq"]["calibration"]
    assert drifted["refit 1"]["held_out"] > drifted["gptq"]["held_out"]
    compared = module.compared([drifted], ("calibration",))
    expected = drifted["refit 1"]["calibration"] - drifted["gptq"]["calibration"]
    assert compared["calibration"]["differences"]["refit 1 - gptq"]["mean"] == pytest.approx(expected, abs=1e-5)
