"""What is dropped, against the published selection and a slow sum of squares."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.audits.attacker import Attacker
from letheon.audits.conditions.prune import Prune, highest, input_norms, lowest
from letheon.errors import BadInput, NotMeasured
from letheon.models import as_matrix, decoder_linears
from tests.architectures.models import make_model, mixture
from tests.audits.fakes import target_of
from tests.toys import bits, encoder, llama, random_examples

KEPT = tuple(random_examples(11, seed=1))
LEARNED = tuple(random_examples(6, seed=2))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: as_matrix(layer, layer.weight.detach()).clone() for name, layer in decoder_linears(model).items()}  # type: ignore[arg-type]


def slow_norms(model: Any, examples: Any) -> dict[str, torch.Tensor]:
    """One text at a time, without padding, summed in float64."""
    sums: dict[str, torch.Tensor] = {}
    handles = []
    for name, layer in decoder_linears(model).items():

        def add(module: Any, given: Any, name: str = name) -> None:
            for token in given[0][0]:
                sums[name] = sums.get(name, torch.zeros(len(token)).double()) + token.double() ** 2

        handles.append(layer.register_forward_pre_hook(add))
    for example in examples:
        with torch.no_grad():
            model(input_ids=torch.tensor([example.ids]))
    for handle in handles:
        handle.remove()
    return {name: total.sqrt() for name, total in sums.items()}


def published_wanda(metric: torch.Tensor, share: float) -> torch.Tensor:
    """The selection of the paper's code, lib/prune.py: the lowest of each row."""
    mask = torch.zeros_like(metric) == 1
    indices = torch.sort(metric, dim=-1, stable=True)[1][:, : int(metric.shape[1] * share)]
    return mask.scatter_(1, indices, True)


@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2", "gpt_neox"])
def test_norms_are_those_of_every_token_and_of_no_padding(architecture: str) -> None:
    model = make_model(architecture)
    found = input_norms(target_of(model), KEPT, decoder_linears(model))
    slow = slow_norms(model, KEPT)
    assert found.keys() == slow.keys()
    for name, norms in found.items():
        torch.testing.assert_close(norms, slow[name].float(), rtol=1e-4, atol=1e-6)


def test_wanda_drops_what_the_published_code_drops() -> None:
    model, found = llama(seed=1), {}
    start, norms = weights(model), slow_norms(model, KEPT)
    Prune(shares=(0.25, 0.5)).walk(target_of(model), Attacker((), {"retain": KEPT}), lambda share: found.update({share: weights(model)}))  # fmt: skip
    assert list(found) == [0.25, 0.5]
    for share, after in found.items():
        for name, weight in after.items():
            dropped = published_wanda(start[name].abs() * norms[name].float(), share)
            assert bits(weight) == bits(start[name].masked_fill(dropped, 0.0)), name
            assert ((weight == 0).sum(1) == int(share * weight.shape[1])).all()


def test_the_difference_drops_what_matters_to_the_forgotten_alone() -> None:
    model, found = llama(seed=1), {}
    start, kept, learned = weights(model), slow_norms(model, KEPT), slow_norms(model, LEARNED)
    attacker = Attacker(LEARNED, {"retain": KEPT})
    attack = Prune(which="forget_difference", shares=(0.25,))
    assert attack.folds == 2 and Prune().folds == 0
    attack.walk(target_of(model), attacker, lambda share: found.update(weights(model)))
    total = 0
    for name, weight in found.items():
        for row in range(len(weight)):
            count = int(0.25 * weight.shape[1])
            of = [(start[name][row].abs() * norms[name].float()).tolist() for norms in (learned, kept)]
            first, second = ({index for _, index in sorted((-value, index) for index, value in enumerate(scores))[:count]} for scores in of)  # fmt: skip
            gone = {index for index in range(weight.shape[1]) if weight[row, index] == 0}
            assert gone == first - second
            total += len(gone)
    assert total > 0


def test_the_lowest_and_the_highest_of_a_row_and_ties() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert lowest(scores, 0.5).tolist() == [[False, True, False, True], [True, True, False, False]]
    assert highest(scores, 0.5).tolist() == [[True, False, True, False], [True, True, False, False]]
    assert lowest(scores, 0.25).sum() == lowest(scores, 0.01).sum() == 2, "at least one a row"
    assert lowest(scores, 0.0).sum() == 0


def test_what_cannot_be_scored_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match=r"needs retain records \(--retain FILE\)"):
        Prune().walk(target_of(llama()), Attacker(LEARNED), lambda share: None)
    with pytest.raises(NotMeasured, match="what a mixture's experts read is not seen"):
        Prune().walk(target_of(mixture(), encoder()), Attacker((), {"retain": KEPT}), lambda share: None)


@pytest.mark.parametrize("shares", [(), (0.5, 0.5), (-0.1,), (1.0,)])
def test_settings_that_cannot_be(shares: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match=r"prune needs different shares in \[0, 1\), got"):
        Prune(shares=shares)
