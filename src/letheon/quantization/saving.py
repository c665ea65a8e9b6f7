"""A folder of a low-bit model around its tensors: shards as they come, configuration, tokenizer, card.

Never more than one shard is held. Shards are named when the last one is known: model.safetensors alone, or
model-0000k-of-0000n.safetensors with model.safetensors.index.json. Weights that a configuration ties are stored once.

Source: the layout of `save_pretrained` in transformers 5 (metadata {"format": "pt"}).
Checked against: transformers loads the folder; the index names every tensor; a tied head under two names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from letheon.blueprint import make_blueprint
from letheon.errors import CannotFinish
from letheon.lowbit.matrices import fused_experts, router_layer
from letheon.models import GATE_NAME, load_tokenizer, read_gate_units
from letheon.quantization.low_bit import LowBitModel

SHARD_BYTES = 2 * 2**30
"""Size of a shard that is not passed unless one tensor alone is larger."""


class FolderWriter:
    """An empty folder on its way to be a model."""

    def __init__(self, target: Path, model: LowBitModel, *, dtype: str | None = None) -> None:
        """Write the configuration. `dtype`: what config.json says weights are loaded as; the original's if None."""
        self.target, self._model = target, model
        self._config = {**model.original.config, **model.config}
        said = {"dtype", "torch_dtype"} & set(self._config) or {"dtype"}
        self._config |= dict.fromkeys(said, dtype or model.original.dtype)
        self._write_config()
        blueprint = make_blueprint(target)
        self._prefix = f"{blueprint.base_model_prefix}."
        self.tied_again = frozenset(_tied_again(model, blueprint))
        """Tensors beside the rounded layers that the configuration ties to one before them."""
        head = blueprint.get_output_embeddings()
        rounded = {self._bare(name) for name in model.layers}
        linears = {name: module for name, module in blueprint.named_modules() if isinstance(module, nn.Linear)}
        self.head = next((name for name, module in linears.items() if module is head), "lm_head")
        self.left_dense = [name for name in linears if name != self.head and self._bare(name) not in rounded]
        self.left_dense += [router_layer(name) for name in fused_experts(blueprint)]
        """Linear layers outside the head that are not rounded, and what chooses among experts."""

    def others(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors beside the rounded layers, tied ones once."""
        for name in self._model.others:
            if name not in self.tied_again:
                yield name, self._model.others[name]

    def write_shards(self, tensors: Iterable[tuple[str, Tensor]], *, limit: int = SHARD_BYTES) -> None:
        """Write safetensors as the tensors come.

        Raises:
            CannotFinish: a NaN or an infinity among them.
        """
        shard: dict[str, Tensor] = {}
        size, files, total = 0, list[tuple[Path, list[str]]](), 0

        def flush() -> None:
            path = self.target / f"shard-{len(files)}.safetensors"
            save_file(shard, path, metadata={"format": "pt"})
            files.append((path, list(shard)))
            shard.clear()

        for name, tensor in tensors:
            check_finite(name, tensor)
            if shard and size + tensor.nbytes > limit:
                flush()
                size = 0
            shard[name] = tensor.detach().cpu().contiguous()
            size, total = size + tensor.nbytes, total + tensor.nbytes
        flush()
        self._name_shards(files, total)

    def _name_shards(self, files: list[tuple[Path, list[str]]], total: int) -> None:
        for path, _ in files:  # as readable as what stands beside it: safetensors writes for the owner alone
            path.chmod((self.target / "config.json").stat().st_mode & 0o777)
        if len(files) == 1:
            files[0][0].rename(self.target / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(files, start=1):
            file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
            path.rename(self.target / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(self.target / "model.safetensors.index.json", index)

    def finish(self, *, quantization: Mapping[str, Any] | None, load: str) -> None:
        """What stands beside the weights.

        Args:
            quantization: `quantization_config` of config.json.
            load: Python that loads the folder, for the card.
        """
        original = self._model.original.path
        if quantization is not None:
            self._config["quantization_config"] = dict(quantization)
            self._write_config()
        if (original / "generation_config.json").is_file():
            shutil.copyfile(original / "generation_config.json", self.target / "generation_config.json")
        if read_gate_units(original):
            shutil.copyfile(original / GATE_NAME, self.target / GATE_NAME)
        load_tokenizer(original).save_pretrained(self.target)
        card = f"{self._model.card.rstrip()}\n\n## How to load it\n\n{load.strip()}\n".lstrip()
        (self.target / "README.md").write_text(card, encoding="utf-8")

    def _write_config(self) -> None:
        _write_json(self.target / "config.json", dict(sorted(self._config.items())))

    def _bare(self, name: str) -> str:
        """Some published files leave the model's prefix out."""
        return name.removeprefix(self._prefix)


def _tied_again(model: LowBitModel, blueprint: Any) -> Iterator[str]:
    prefix = f"{blueprint.base_model_prefix}."
    parameters = {
        name.removeprefix(prefix): id(parameter)
        for name, parameter in blueprint.named_parameters(remove_duplicate=False)
    }
    seen: set[int] = set()
    for name in model.others:
        place = parameters.get(name.removeprefix(prefix))
        if place is not None and place in seen:
            yield name
        elif place is not None:
            seen.add(place)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise CannotFinish for a NaN or an infinity in what is about to be written."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise CannotFinish(f"tensor {name} holds NaN or infinity as {dtype}; nothing was saved. Use a wider dtype")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
