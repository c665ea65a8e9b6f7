"""How a compressed-tensors folder says what is rounded while the model runs, and what it says of that.

In `quantization_config` of config.json, with b bits:
    config_groups.*.input_activations   {"num_bits": b, "strategy": "token", "dynamic": true, "symmetric": false, ...}
    kv_cache_scheme                     {"num_bits": b, "strategy": "group", "group_size": head_dim, ...}
A group of head_dim channels is one head of one token; what the package calls a token's strategy would share a scale
over time there, and decoding would not be a whole pass. Both take the range of what is there, 0 included, without a
clip ratio: `TokenGrid(bits=b)`.

What is rotated before the MLP's last linear (R4) stands in `transform_config` with {"location": "input"}. Its matrix R
times the square root of its width stands once in the files, since modules share it: down_proj.R4_input.weight.
transformers 5.23 does not look at it, so the package's `apply_transform_config` has to be called: the card says how.
Keys that are rotated behind the rotary embedding (R3) cannot be said: where the package rotates queries to match, it
rounds them too.

Source: compressed-tensors 0.20; its names, not its code.
Checked against: transformers with that package, every architecture it reaches: logits equal bit by bit; with transforms
applied by the package to 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from letheon.errors import BadInput
from letheon.lowbit.activations import ActivationGrids
from letheon.lowbit.online import MARKER
from letheon.models import ModelFolder
from letheon.numerics.hadamard import Hadamard
from letheon.numerics.token_grids import TokenGrid
from letheon.quantization.limits import Plan

_MATRIX = ".R4_input.weight"
_ARGUMENTS = {"type": "int", "symmetric": False, "dynamic": True}


def running_problems(plan: Plan) -> list[str]:
    """Faults of what is to be rotated and rounded while it runs, and these files cannot say."""
    found = []
    if "R3" in plan.online:
        found.append(
            "compressed-tensors rounds queries too where it rotates keys (R3), which would be another model. Use "
            "--rotation.keys false"
        )
    return found + ([] if plan.grids is None else _grid_problems(plan, plan.grids))


def _grid_problems(plan: Plan, grids: ActivationGrids) -> list[str]:
    found = []
    if getattr(plan.grid, "scheme", "") == "asym":
        found.append(
            "asymmetric weights are opened in a way that leaves activations, keys and values alone. Use "
            "--method.scheme sym, or --act-bits 16 --kv-bits 16"
        )
    if not grids.keys.is_off and any("query_key_value" in name for name in plan.shapes):
        found.append(
            "compressed-tensors does not find the keys that a fused layer makes, so they would not be rounded. Use "
            "--kv-bits 16"
        )
    plain = ActivationGrids(
        inputs=TokenGrid(bits=grids.inputs.bits),
        keys=TokenGrid(bits=grids.keys.bits),
        values=TokenGrid(bits=grids.keys.bits),
    )
    if grids != plain:
        found.append(
            "files of format compressed_tensors have asymmetric token grids without clip ratio, groups or exceptions"
        )
    return found


def with_grids(config: Mapping[str, Any], grids: ActivationGrids, *, head_dim: int) -> dict[str, Any]:
    """`quantization_config` with the grids in it."""
    said = dict(config)
    if not grids.inputs.is_off:
        inputs = {"num_bits": grids.inputs.bits, **_ARGUMENTS, "strategy": "token"}
        # Weights beside activations are stored a byte each unless a group says otherwise.
        said["config_groups"] = {
            name: {**group, "format": said["format"], "input_activations": inputs}
            for name, group in said["config_groups"].items()
        }
    if not grids.keys.is_off:
        said["kv_cache_scheme"] = {
            "num_bits": grids.keys.bits,
            **_ARGUMENTS,
            "strategy": "group",
            "group_size": head_dim,
        }
    return said


def with_transforms(config: Mapping[str, Any], down: Mapping[str, Hadamard]) -> dict[str, Any]:
    """`quantization_config` with what is rotated while the model runs: linear -> R4."""
    if not down:
        return dict(config)
    applied = {"targets": list(down), "location": "input", "inverse": False, "ignore": []}
    scheme = {
        "type": "random-hadamard",
        "apply": [applied],
        "randomize": False,
        "requires_grad": False,
        "head_dim": None,
        "precision": "torch.float32",
    }
    return {**config, "transform_config": {"config_groups": {"R4": scheme}}}


def transform_tensors(down: Mapping[str, Hadamard]) -> Iterator[tuple[str, Tensor]]:
    """The matrix of R4 under its name in the files."""
    if down:
        first, *others = down.values()
        # One transform of the package is one matrix for all its modules.
        assert all(torch.equal(first.matrix(), other.matrix()) for other in others), "rotations differ between blocks"
        yield f"{next(iter(down))}{_MATRIX}", (first.matrix() * first.size**0.5).float()


def is_transform(name: str) -> bool:
    """Whether a tensor of the files is the matrix of a transform."""
    return name.endswith(_MATRIX)


def read_grids(folder: ModelFolder) -> ActivationGrids | None:
    """What is rounded while the model runs; None where nothing is, or the folder is of another format.

    Raises:
        BadInput: something else than dynamic grids of whole numbers, one for all linears.
    """
    config = folder.config.get("quantization_config")
    if not isinstance(config, Mapping) or config.get("quant_method") != "compressed-tensors":
        return None
    groups = [group for group in (config.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    inputs = [group.get("input_activations") for group in groups]
    said = [
        what
        for what, is_there in (
            ("output_activations", any(group.get("output_activations") for group in groups)),
            ("transform_config", bool(config.get("transform_config")) and not _is_ours(folder, config)),
        )
        if is_there
    ]
    if said or any(one != inputs[0] for one in inputs):
        raise _unreadable(folder, " and ".join(said) or "several kinds of input_activations")
    first = inputs[0] if inputs else None
    cache = config.get("kv_cache_scheme")
    if not first and not cache:
        return None
    keys = _grid(folder, "kv_cache_scheme", cache, {"strategy": "group", "group_size": head_dim(folder)})
    return ActivationGrids(
        inputs=_grid(folder, "input_activations", first, {"strategy": "token"}), keys=keys, values=keys
    )


def _is_ours(folder: ModelFolder, config: Mapping[str, Any]) -> bool:
    """Whether the transforms of a file are those that its marker knows of: R4, of the same blocks."""
    try:
        marked = [index for one in folder.config[MARKER]["online"]["down"] for index in one["blocks"]]
        groups = config["transform_config"]["config_groups"]
        applied = [(name, one["location"], len(one["targets"])) for name in groups for one in groups[name]["apply"]]
    except (KeyError, TypeError):
        return False
    return applied == [("R4", "input", len(marked))]


def head_dim(folder: ModelFolder) -> int:
    """Channels of a head, by the configuration."""
    config = folder.config
    found = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(found)


def _grid(folder: ModelFolder, what: str, said: Any, wanted: Mapping[str, Any]) -> TokenGrid:
    if not said:
        return TokenGrid(bits=16)
    bits = said.get("num_bits") if isinstance(said, Mapping) else None
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise _unreadable(folder, f"{what} of {bits} bits")
    for name, value in {**_ARGUMENTS, **wanted}.items():
        if said.get(name) != value:
            raise _unreadable(folder, f"{what} with {name} {said.get(name)}")
    return TokenGrid(bits=bits)


def _unreadable(folder: ModelFolder, what: str) -> BadInput:
    return BadInput(
        f"{folder.path}: has {what}, which is not run here, and its weights alone are not this model. Audit a file "
        "whose activations are asymmetric with a token's own scale, or which has weights quantized and nothing else"
    )
