"""A low-rank attack: peft's own layers trained alike, merged and beside, and weights as they were between the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from letheon.audits.attacker import Attacker
from letheon.audits.conditions.relearn_lora import RelearnLora, _run_beside, merged
from letheon.data.batches import EpochOrder, collate
from letheon.errors import BadInput
from letheon.models import decoder_linears
from tests.architectures.models import make_model
from tests.audits.fakes import target_of
from tests.toys import bits, llama, random_examples

LEARNED = tuple(random_examples(9, seed=1))
IDS = torch.arange(2, 12).unsqueeze(0)


def state(model: Any) -> dict[str, bytes]:
    return {name: bits(one) for name, one in model.state_dict().items()}


def by_peft(settings: RelearnLora, steps: int) -> dict[str, torch.Tensor]:
    """peft's adapter on the same draws, torch's AdamW on the same batches; the weights with its change merged."""
    from peft import LoraConfig, inject_adapter_in_model

    model: Any = llama(seed=1).double()
    layers = decoder_linears(model)
    drawn = settings.changes(layers)
    config = LoraConfig(r=settings.rank, lora_alpha=int(settings.alpha), target_modules=list(layers))
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)
    moving = []
    for name, (down, _) in drawn.items():
        layer: Any = model.get_submodule(name)
        layer.lora_A["default"].weight.data = down.detach().clone()
        layer.lora_B["default"].weight.data = torch.zeros_like(layer.lora_B["default"].weight).double()
        moving += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    for one in moving:
        one.requires_grad_(True)
    optimizer = torch.optim.AdamW(moving, lr=settings.learning_rate, weight_decay=0.0)
    order = EpochOrder(tuple(len(example.ids) for example in LEARNED), settings.batch_size, settings.seed)
    for step in range(steps):
        items = order.items(step)
        batch = collate([LEARNED[item] for item in items], items, pad=0)
        labels = torch.full_like(batch.ids, -100)
        labels[batch.label_row, batch.label_column + 1] = batch.label_ids
        optimizer.zero_grad()
        model(input_ids=batch.ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, settings.clip)
        optimizer.step()
    found = {}
    for name in drawn:
        layer = model.get_submodule(name)
        found[name] = (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
    return found


def test_it_is_pefts_adapter_trained_alike() -> None:
    settings = RelearnLora(steps=(1, 3), rank=3, alpha=6.0, batch_size=4)
    model: Any = llama(seed=1).double()
    found: dict[int, dict[str, torch.Tensor]] = {}

    def then(step: int) -> None:
        found[step] = {name: layer.weight.detach().clone() for name, layer in decoder_linears(model).items()}  # type: ignore[operator]

    settings.walk(target_of(model), Attacker(LEARNED), then)
    for step in (1, 3):
        for name, weight in by_peft(settings, step).items():
            torch.testing.assert_close(found[step][name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama_tied", "gpt2", "gpt_neox"])
def test_merged_says_what_stands_beside_and_comes_off_to_the_bit(architecture: str) -> None:
    model = make_model(architecture).double()
    layers, settings = decoder_linears(model), RelearnLora(rank=2)
    changes = settings.changes(layers)
    generator = torch.Generator().manual_seed(0)
    for _, up in changes.values():
        up.data = torch.randn(up.shape, generator=generator, dtype=up.dtype) * 0.1
    before = state(model)
    with torch.no_grad():
        plain = model(input_ids=IDS).logits
        handles = [_run_beside(layer, *changes[name], settings.scale) for name, layer in layers.items()]
        beside = model(input_ids=IDS).logits
        with pytest.raises(ZeroDivisionError), merged(layers, changes, settings.scale):
            torch.testing.assert_close(model(input_ids=IDS).logits, beside, rtol=1e-9, atol=1e-9)
            assert state(model) != before
            raise ZeroDivisionError
        assert state(model) == before
        torch.testing.assert_close(model(input_ids=IDS).logits, beside)
        for handle in handles:
            handle.remove()
        assert bits(model(input_ids=IDS).logits) == bits(plain) and not torch.allclose(plain, beside)


def test_weights_are_those_of_the_file_between_the_steps_and_afterwards() -> None:
    model = llama(seed=1)
    before, asked = state(model), []
    RelearnLora(steps=(1, 2)).walk(target_of(model), Attacker(LEARNED), lambda step: asked.append(state(model)))
    assert state(model) == before and asked[0] != before != asked[1] != asked[0]
    kept = [name for name in before if not name.endswith("_proj.weight")]
    assert all(asked[1][name] == before[name] for name in kept), "embeddings, norms and head stay"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 0}, "rank >= 1, got 0"), ({"alpha": 0.0}, "finite alpha > 0, got 0"), ({"alpha": float("inf")}, "got inf"), ({"steps": ()}, "different steps")],
)  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        RelearnLora(**settings)
