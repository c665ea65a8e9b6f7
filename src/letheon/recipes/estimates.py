"""What a verb will need, before a weight is loaded: its own code, run on tensors without values.

Here is what all estimates share: a model opened, questions asked, a folder saved. Training and forgetting:
`training_estimates`. Quantizing: `quantize_estimates`. An audit: `audit_estimates`.

Source: this project.  Checked against: the measured peak of real runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from letheon.data.batches import Batch, batch_tokens_on, by_length
from letheon.data.encode import Encoder, Example
from letheon.models import DTYPES, Exact, ModelFolder, as_it_is, load_tokenizer, working_dtype
from letheon.recipes.rehearsal import Rehearsal, Work, seconds
from letheon.training.losses import Body
from letheon.training.memory import OTHER
from letheon.training.prepare import Opened
from letheon.training.scoring import LOGITS_AT_ONCE
from letheon.training.train import storage_dtypes

PARTS = ("weights", "gradients", "optimizer", "references", "activations")


@dataclass(frozen=True)
class Estimate:
    """Bytes at the highest moment by what they are, and seconds."""

    memory: dict[str, int]
    """PARTS -> bytes at the highest moment; "activations" holds all that is temporary. They add up to the peak."""
    seconds: float
    """Of everything: caches, steps, looks; rough."""
    steps: int | None = None
    """Steps at most."""
    step_seconds: float | None = None
    """Of a mean step, rough."""


@dataclass(frozen=True)
class Questions:
    """What is asked by forward passes alone: its largest batches, and how much more there is."""

    batches: Sequence[Batch]
    """The batch with the most labels and, last, the one with the most tokens; they may be one."""
    share: float
    """All that is asked, in units of the last batch."""
    is_hidden: bool = False
    """Only the last hidden states are wanted."""


def questions(
    examples: Sequence[Example], encoder: Encoder, device: str, *, times: float = 1.0, is_hidden: bool = False
) -> Questions:
    """What asking these examples so many times comes to. Not under a `Rehearsal`: batches are made."""
    batches = by_length(examples, pad=encoder.pad, batch_tokens=batch_tokens_on(device))
    if not batches:
        return Questions((), 0.0)
    labels = [len(batch.label_ids) for batch in batches]
    sizes = [batch.ids.numel() for batch in batches]
    most, longest = labels.index(max(labels)), sizes.index(max(sizes))
    chosen = [batches[number] for number in dict.fromkeys((most, longest))]
    return Questions(chosen, times * sum(sizes) / sizes[longest], is_hidden)


@torch.no_grad()
def ask(opened: Opened, rehearsal: Rehearsal, asked: Sequence[Questions]) -> Work:
    """The largest batches through the model; the work of all that is asked."""
    total = Work()
    for some in asked:
        for batch in some.batches:
            rehearsal.start_counting()
            with opened.autocast():
                if some.is_hidden:
                    opened.body.hidden(batch.to(opened.device)).float()
                else:
                    _score(opened.body, batch.to(opened.device))
        total += rehearsal.work * some.share
    return total


def _score(body: Body, batch: Batch) -> None:
    """As `score_examples` does: without the last token, and with logits of so many labels at once."""
    hidden = body.hidden(
        replace(batch, ids=batch.ids[:, :-1], attention_mask=batch.attention_mask[:, :-1]), is_masked=False
    )
    at_once = max(1, LOGITS_AT_ONCE // body.head.weight.shape[0])
    for states, labels in zip(torch.split(hidden, at_once), torch.split(batch.label_ids, at_once), strict=True):
        logits = body.apply_head(states)
        torch.nn.functional.cross_entropy(logits, labels, reduction="none").double()
        _ = logits.argmax(-1) == labels
        del logits


def make_encoder(folder: ModelFolder, template: str) -> Encoder:
    """The encoder that a verb makes for a model."""
    return Encoder(load_tokenizer(folder.path), max_length=folder.window, template=template)


def open_rehearsed(
    rehearsal: Rehearsal,
    folder: ModelFolder,
    encoder: Encoder,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    dtype: str = "float32",
) -> Opened:
    """A model without its weights, as a verb opens the real one."""
    model = rehearsal.model(folder, dtype)
    return Opened(model, Body(model), encoder, rehearsal.device, autocast)


@torch.no_grad()
def save(model: Any, folder: ModelFolder, save_dtype: str, exact: Exact = as_it_is) -> None:
    """What `save_model` holds beside the model: all of it in the file's dtype, and two files read tensor by tensor."""
    state = {name: parameter.detach().to("cpu") for name, parameter in model.named_parameters()}
    stored = storage_dtypes(folder, state)
    target = None if save_dtype == "original" else getattr(torch, save_dtype)
    written = [exact(name, tensor).to(target or stored[name]) for name, tensor in state.items()]
    del written
    for name, entry in folder.tensors.items():
        if entry.dtype in DTYPES:
            before = torch.empty(entry.shape, dtype=getattr(torch, DTYPES[entry.dtype]))
            after = torch.empty(entry.shape, dtype=target or before.dtype)
            has_moved = exact(name, state.get(name, before)).float() != before.float()
            stays_moved = after.float() != before.float()
            _ = has_moved & stays_moved


def by_part(rehearsal: Rehearsal) -> dict[str, int]:
    """PARTS -> bytes at the highest moment."""
    found = rehearsal.bytes.at_peak()
    found["activations"] = found.pop(OTHER, 0)
    return {part: found.get(part, 0) for part in PARTS}


def time_of(work: Work, rows: int, model: Any, device: str) -> float:
    """Seconds that work on a model takes here, rough; `rows` are the tokens of one of its forward passes."""
    width = model.get_input_embeddings().weight.shape[1]
    return seconds(work, rows=rows, width=int(width), device=device, dtype=working_dtype(device))
