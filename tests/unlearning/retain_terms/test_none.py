"""No retain term: the forget term alone, as if alpha were 0."""

from __future__ import annotations

import pytest
import torch

from letheon.training.losses import Body
from letheon.unlearning.balances.weighted import Weighted
from letheon.unlearning.forget_terms.npo import NPO
from letheon.unlearning.objective import TermLoss, make_gradient
from letheon.unlearning.reference import cache_log_probs, cache_logits
from letheon.unlearning.retain_terms.gdr import GDR
from letheon.unlearning.retain_terms.klr import KLR
from letheon.unlearning.retain_terms.none import NoRetain
from letheon.unlearning.smoothers.none import NoSmoothing
from tests.toys import llama, micro_batches, random_examples


def test_it_needs_nothing() -> None:
    assert NoRetain().needs == ()


@pytest.mark.parametrize("term", [GDR(), KLR()])
def test_alpha_nothing_is_no_retain_term(term: GDR | KLR) -> None:
    model = llama()
    body = Body(model)
    forget_examples, retain_examples = random_examples(6, seed=1), random_examples(6, seed=2)
    log_probs = cache_log_probs(body, forget_examples, reduction="mean", pad=0, device="cpu")
    logits = cache_logits(body, retain_examples, pad=0, device="cpu")
    with torch.no_grad():
        model.lm_head.weight.mul_(1.3)  # away from the original
    forget = TermLoss(NPO(), body, {"reference_log_probs": log_probs})
    retain = TermLoss(term, body, {"reference_logits": logits})
    parts = {"forget": micro_batches(forget_examples, 3), "retain": micro_batches(retain_examples, 3)}
    parameters = list(model.parameters())
    found = [
        make_gradient(
            forget=forget, retain=each, balance=Weighted(alpha=0.0), smoother=NoSmoothing(), parameters=parameters,
            pad=0,
        )(model, parts)
        for each in (retain, None)
    ]  # fmt: skip
    for one, other in zip(found[0].tensors, found[1].tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert found[0].figures["forget_loss"] == pytest.approx(found[1].figures["forget_loss"], rel=1e-5)
    assert found[0].figures["loss"] == pytest.approx(found[1].figures["loss"], rel=1e-5)
