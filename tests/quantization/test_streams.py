"""Calibration text goes through each block as the model calls that block: blocks of two kinds are given two masks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config

from letheon.lowbit.architectures import model_layout
from letheon.methods import build
from letheon.quantization import block_walk
from letheon.quantization.block_walk import Walk, walk
from letheon.quantization.streams import Batch, first_batches, mean_loss, through
from tests.architectures.models import ARCHITECTURES, make_from, make_model
from tests.toys import bits

IDS = torch.randint(2, 768, (6, 20), generator=torch.Generator().manual_seed(0))
FULL, SLIDING = "full_attention", "sliding_attention"
ORDERS = [(FULL, SLIDING, FULL), (SLIDING, FULL, SLIDING)]


def mixed(kinds: tuple[str, ...] = ORDERS[0]) -> Any:
    """Qwen 2 with attention of two kinds; the window is shorter than the text."""
    settings = ARCHITECTURES["qwen2"]().to_dict() | {"num_hidden_layers": len(kinds), "layer_types": list(kinds)}
    return make_from(Qwen2Config(**{**settings, "use_sliding_window": True, "sliding_window": 6}))


def ends(model: Any, ids: Tensor) -> Tensor:
    """What leaves the last block in the model's own forward pass."""
    found: list[Tensor] = []
    last = model.get_submodule(model_layout(model).blocks[-1].name)
    hook = last.register_forward_hook(lambda _, given, out: found.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    hook.remove()
    return found[0]


def streamed(model: Any) -> list[Batch]:
    """Four sequences, and the other two."""
    layout = model_layout(model)
    batches = first_batches(model, layout, IDS, size=4, device="cpu")
    for block in layout.blocks:
        batches = [through(model, block, batch, device="cpu") for batch in batches]
    return batches


@pytest.mark.parametrize("kinds", ORDERS, ids=["full first", "sliding first"])
def test_blocks_of_two_kinds_end_where_the_model_ends_to_the_bit(kinds: tuple[str, ...]) -> None:
    model = mixed(kinds)
    batches = streamed(model)
    for batch, ids in zip(batches, IDS.split(4), strict=True):
        assert bits(batch.hidden) == bits(ends(model, ids))
    with torch.no_grad():
        whole = float(model(input_ids=IDS, labels=IDS, use_cache=False).loss)
    assert mean_loss(model, model_layout(model), batches, IDS, device="cpu") == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_kind_ends_there_too(name: str) -> None:
    model = make_model(name)
    for batch, ids in zip(streamed(model), IDS.split(4), strict=True):
        assert bits(batch.hidden) == bits(ends(model, ids))


def test_the_window_matters_on_this_text() -> None:
    """Of the oracle: with one kind of attention everywhere the end is another."""
    wanted = ends(mixed(), IDS)
    for kind in (FULL, SLIDING):
        assert not torch.allclose(ends(mixed((kind,) * 3), IDS), wanted, rtol=1e-2, atol=1e-2)


def test_what_stands_beside_is_held_once_for_each_shape_of_batch_and_kind_of_block() -> None:
    model = mixed((FULL, SLIDING, FULL, SLIDING))
    batches = first_batches(model, model_layout(model), IDS, size=2, device="cpu")
    assert len(batches) == 3 and all(batch.calls is batches[0].calls for batch in batches)
    masks = [call.named["attention_mask"] for call in batches[0].calls.values()]
    assert len(masks) == 4 and masks[0] is masks[2] and masks[1] is masks[3]
    assert masks[0] is not masks[1]


def test_no_hook_and_no_stand_in_stays_behind() -> None:
    model = mixed()
    first_batches(model, model_layout(model), IDS, size=4, device="cpu")
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("method", ["gptaq", "awq"])
def test_a_walk_over_two_kinds_that_was_killed_ends_with_the_same_bytes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_walk, "TOKENS_AT_ONCE", 4 * IDS.shape[1])

    def walked(keep: Path) -> Any:
        model = mixed()
        return walk(Walk(model, model_layout(model), build("quantizer", {"name": method, "bits": 3}), IDS, keep))

    whole = walked(tmp_path / "whole")
    for done in (1, 2):
        keep = tmp_path / f"killed-{done}"
        keep.mkdir()
        for file in whole.files[:done]:
            shutil.copy(file, keep)
        again = walked(keep)
        assert [file.read_bytes() for file in again.files] == [file.read_bytes() for file in whole.files]
        assert (again.figures, again.loss_after) == (whole.figures, whole.loss_after)
