"""Padding, labels in one flat list, and orders that are functions of (seed, step)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from letheon.data.batches import Batch, EpochOrder, RandomOrder, by_length, collate, join
from letheon.data.encode import Example
from tests.toys import batch_of, random_examples

PAD = 99
THREE = [Example((5, 6, 7), 1), Example((8, 9, 10, 11), 3), Example((12, 13), 1)]


def test_a_batch_by_hand() -> None:
    batch = collate(THREE, [4, 2, 0], pad=PAD)
    assert batch.ids.tolist() == [[5, 6, 7, PAD], [8, 9, 10, 11], [12, 13, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.label_row.tolist() == [0, 0, 1, 2]
    assert batch.label_column.tolist() == [0, 1, 2, 0]  # where the logits that predict the label stand
    assert batch.label_ids.tolist() == [6, 7, 11, 13]
    assert batch.items.tolist() == [4, 2, 0]
    assert batch.size == 3 and batch.label_counts.tolist() == [2, 1, 1]


def test_shares_add_up_to_one_over_a_text_and_leave_padding_out() -> None:
    shares = collate(THREE, [4, 2, 0], pad=PAD).token_shares
    third = pytest.approx(1 / 3)
    assert shares.tolist() == [[third, third, third, 0], [0.25] * 4, [0.5, 0.5, 0, 0]]


def test_without_labels_only_the_labels_are_gone() -> None:
    batch = collate(THREE, [4, 2, 0], pad=PAD)
    bare = batch.without_labels()
    assert torch.equal(bare.ids, batch.ids) and torch.equal(bare.items, batch.items) and bare.size == 3
    assert len(bare.label_ids) == len(bare.label_row) == len(bare.label_column) == 0 and len(batch.label_ids) == 4
    assert join(bare, batch, pad=PAD).label_row.tolist() == [3, 3, 4, 5]


def test_a_label_is_the_token_behind_its_column() -> None:
    batch = batch_of(random_examples(20), pad=0)
    assert torch.equal(batch.ids[batch.label_row, batch.label_column + 1], batch.label_ids)
    assert bool(batch.attention_mask[batch.label_row, batch.label_column + 1].all())


def test_a_pad_token_inside_a_text_is_labelled_like_any_other() -> None:
    # With pad = eos the end of the answer must stay labelled, and only the padding be left out.
    batch = collate([Example((5, 6, PAD), 1), Example((5, 6, 7, PAD), 2)], [0, 1], pad=PAD)
    assert batch.label_ids.tolist() == [6, PAD, 7, PAD]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_joining_is_collating_at_once() -> None:
    examples = random_examples(9, seed=3)
    first, second = batch_of(examples, range(4), pad=PAD), batch_of(examples, range(4, 9), pad=PAD)
    for one, two in ((first, second), (second, first)):
        joined = join(one, two, pad=PAD)
        whole = batch_of(examples, [*one.items.tolist(), *two.items.tolist()], pad=PAD)
        for name in ("ids", "attention_mask", "label_row", "label_column", "label_ids", "items"):
            assert torch.equal(getattr(joined, name), getattr(whole, name)), name


def test_a_batch_moves_whole() -> None:
    moved = batch_of(THREE).to("meta")
    assert all(getattr(moved, name).is_meta for name in Batch.__dataclass_fields__ if name != "is_filler")
    assert not moved.is_filler and replace(batch_of(THREE), is_filler=True).to("meta").is_filler


@pytest.mark.parametrize("limit", [1, 40, 100, 10_000])
def test_by_length_holds_everything_once_within_the_limit(limit: int) -> None:
    examples = random_examples(50, longest=30)
    batches = by_length(examples, pad=PAD, batch_tokens=limit)
    items = [item for batch in batches for item in batch.items.tolist()]
    assert sorted(items) == list(range(50))
    for batch in batches:
        assert batch.ids.numel() <= limit or batch.size == 1
        for row, item in enumerate(batch.items.tolist()):
            length = len(examples[item].ids)
            assert tuple(batch.ids[row, :length].tolist()) == examples[item].ids
    lengths = [len(examples[item].ids) for item in items]
    assert lengths == sorted(lengths)
    if limit == 10_000:
        assert len(batches) == 1


def test_by_length_of_nothing_is_nothing() -> None:
    assert by_length([], pad=0) == []


# --- orders


def lengths_of(count: int) -> tuple[int, ...]:
    return tuple(len(example.ids) for example in random_examples(count, longest=40))


@pytest.mark.parametrize(("count", "size"), [(100, 8), (96, 8), (5, 8), (1, 1), (300, 7)])
def test_every_item_comes_once_an_epoch(count: int, size: int) -> None:
    order = EpochOrder(lengths_of(count), size, seed=1)
    steps = order.batches_per_epoch
    assert steps == -(-count // size)
    for epoch in range(3):
        batches = [order.items(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        assert sorted(item for batch in batches for item in batch) == list(range(count))
        assert all(0 < len(batch) <= size for batch in batches)


def test_a_restart_gives_the_same_batches() -> None:
    lengths = lengths_of(50)
    straight = EpochOrder(lengths, 8, seed=3)
    wanted = [straight.items(step) for step in range(30)]
    for step in (29, 0, 7, 14, 13, 28):  # in any order, each from an order of its own
        assert EpochOrder(lengths, 8, seed=3).items(step) == wanted[step]
        assert straight.items(step) == wanted[step]


def test_epochs_and_seeds_differ() -> None:
    lengths = lengths_of(64)
    order, other = EpochOrder(lengths, 8, seed=0), EpochOrder(lengths, 8, seed=1)
    first = [order.items(step) for step in range(8)]
    assert first != [order.items(step) for step in range(8, 16)]
    assert first != [other.items(step) for step in range(8)]


def test_sequences_of_like_length_share_a_batch_and_batches_are_shuffled() -> None:
    lengths = lengths_of(256)
    order = EpochOrder(lengths, 8, seed=0)
    batches = [order.items(step) for step in range(order.batches_per_epoch)]
    padded = sum(len(batch) * max(lengths[item] for item in batch) for batch in batches)
    unsorted = [list(range(start, start + 8)) for start in range(0, 256, 8)]
    worst = sum(len(batch) * max(lengths[item] for item in batch) for batch in unsorted)
    assert padded - sum(lengths) < 0.4 * (worst - sum(lengths))
    widths = [max(lengths[item] for item in batch) for batch in batches]
    assert widths != sorted(widths)


def test_random_items_are_drawn_anew_each_step_without_repetition() -> None:
    order = RandomOrder(20, 8, seed=5)
    drawn = [order.items(step) for step in range(50)]
    assert all(len(set(items)) == 8 and min(items) >= 0 and max(items) < 20 for items in drawn)
    assert [RandomOrder(20, 8, seed=5).items(step) for step in (49, 3)] == [drawn[49], drawn[3]]
    assert drawn[0] != drawn[1] and RandomOrder(20, 8, seed=6).items(0) != drawn[0]
    assert {item for items in drawn for item in items} == set(range(20))


def test_a_set_smaller_than_a_batch_is_drawn_with_repetition() -> None:
    items = RandomOrder(3, 8, seed=0).items(0)
    assert len(items) == 8 and set(items) <= {0, 1, 2}
