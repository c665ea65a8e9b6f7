"""How the inputs of an audit stand to one another: models of equal weights, sets that share records.

Refused is what would make every difference 0 or a measurement mean something else; told is what weakens it, and what
weakens a required number stands in the verdict's scope as well.

Source: this project.  Checked against: a copied folder, planted copies in each pair of sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from letheon.audits.scope import few_warning, guess_warning
from letheon.data.overlap import overlap, renamed_units, shared_units
from letheon.data.records import DataFile
from letheon.errors import BadInput
from letheon.models import ModelFolder
from letheon.runs.folder import sha256_file

_RETRAINED = (
    "Give a model that was trained without the forget set (letheon train BASE --data all.jsonl --without "
    "forget.jsonl), or leave --reference out"
)


@dataclass(frozen=True)
class Compared:
    """What was found beside faults."""

    warnings: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    """What the verdict's scope must say."""


def compare_models(folders: Mapping[str, ModelFolder]) -> Compared:
    """Raises BadInput: a reference that is one of the others. By content, since a folder may be a copy."""
    hashes = {name: _weights(folder) for name, folder in folders.items()}
    problems = [
        f"reference {folders['reference'].path}: has the weights of {_said(name)} {folder.path}, so a model would be "
        f"compared with itself and nothing could be found. {_RETRAINED}"
        for name, folder in folders.items()
        if name != "reference" and hashes[name] == hashes.get("reference")
    ]
    if problems:
        raise BadInput(problems)
    if hashes.get("original") != hashes["model"]:
        return Compared()
    return Compared(
        (
            f"MODEL {folders['model'].path} and original {folders['original'].path} have the same weights: nothing was "
            "unlearned. If that is not meant, give the model before it was unlearned with --original DIR",
        )
    )


def compare_data(data: Mapping[str, DataFile], earlier: Sequence[DataFile] = ()) -> Compared:
    """What the sets share.

    Args:
        data: role -> file.
        earlier: what earlier requests asked to forget, each compared as the forget set is.
    Raises:
        BadInput: a holdout that was trained on, general knowledge that is to be forgotten.
    """
    problems: list[str] = []
    found: list[Compared] = []
    for forgotten in (data["forget"], *earlier):
        try:
            found.append(_compare({**data, "forget": forgotten}))
        except BadInput as error:
            problems += error.problems
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))
    again = [shared.sentence for one in earlier if (shared := overlap(one, data["forget"]))]
    warnings = [warning for one in found for warning in one.warnings]
    caveats = [caveat for one in found for caveat in one.caveats]
    return Compared(tuple(dict.fromkeys([*warnings, *again])), tuple(dict.fromkeys(caveats)))


def _compare(data: Mapping[str, DataFile]) -> Compared:
    """The same with one forget set."""
    problems = [*_holdout_problems(data), *_general_problems(data)]
    if problems:
        raise BadInput(problems)
    warnings: list[str] = []
    caveats: list[str] = []
    if "holdout" in data:
        trained = [data[role] for role in ("forget", "retain") if role in data]
        notes = [told(data["holdout"], other) for other in trained for told in (shared_units, renamed_units)]
        warnings += [note for note in notes if note]
    if "retain" in data and (shared := overlap(data["forget"], data["retain"])):
        warnings.append(shared.sentence)
    if "general" in data and "retain" in data and (shared := overlap(data["general"], data["retain"])):
        caveats.append(
            f"{shared.count} of {len(data['general'].records)} records of general knowledge stand in the retain set"
        )
        warnings.append(f"{shared.sentence}. General knowledge should be what no term of the unlearning has seen")
    warnings += [note for note in (few_warning(data["forget"]), guess_warning(data["forget"])) if note]
    if data["forget"].unit_is_line:
        warnings.append(
            f"{data['forget'].role} set: no 'unit' field, so each line counts as its own unit and the intervals may be "
            "too narrow"
        )
    return Compared(tuple(warnings), tuple(caveats))


def _holdout_problems(data: Mapping[str, DataFile]) -> list[str]:
    if "holdout" not in data:
        return []
    shared = [overlap(data["holdout"], data[role]) for role in ("forget", "retain") if role in data]
    remedy = "A holdout must never have been trained on: take these records out of it"
    return [f"{found.sentence}. {remedy}" for found in shared if found]


def _general_problems(data: Mapping[str, DataFile]) -> list[str]:
    if "general" not in data or not (shared := overlap(data["general"], data["forget"])):
        return []
    return [f"{shared.sentence}. What is to be forgotten cannot be kept: take these records out of the general set"]


def _weights(folder: ModelFolder) -> list[str]:
    """Hashes of the weight files, whatever they are called."""
    return sorted(sha256_file(folder.path / name) for name in {tensor.file for tensor in folder.tensors.values()})


def _said(name: str) -> str:
    return "MODEL" if name == "model" else name
