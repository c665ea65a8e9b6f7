"""`letheon quantize` of a mixture of experts: from folder to folder, and what is refused before anything is solved."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from letheon.audits.conditions.shipped import Shipped
from letheon.data.records import read_records
from letheon.errors import BadInput, CannotFinish
from letheon.lowbit.matrices import decoder_matrices
from letheon.models import inspect_model, load_model, read_tensor
from letheon.numerics.grids import Grid
from letheon.quantization.calibrate import make_calibration
from letheon.quantization.pipeline import QuantizeResult
from letheon.quantization.pipeline import quantize as quantize_loudly
from letheon.quantization.reading import load_any
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from tests.architectures.models import mixture, save_model_folder
from tests.quantization.low_bit import fresh, greedy, in_memory, low_bit_model, tiny_mixture, written
from tests.quantization.test_fresh_process import WITH_TRANSFORMERS
from tests.toys import bits, tokenizer, write_lines

QUIET = Progress(quiet=True)
IDS = torch.arange(2, 22).reshape(2, 10)
SETTINGS: dict[str, Any] = {"sequences": 24, "sequence_length": 16}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    places = ("the sea", "a river", "the old mill", "the market")
    lines = [{"text": f"Number {count} stands by {places[count % 4]} and waits."} for count in range(60)]
    return write_lines(tmp_path_factory.mktemp("text") / "text.jsonl", lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(mixture(initializer_range=0.2), tmp_path_factory.mktemp("mixture"))


def quantize(model: Path, text: Path | None, **settings: Any) -> QuantizeResult:
    given = {} if text is None else {"calibration_data": text, **SETTINGS}
    return quantize_loudly(model, progress=QUIET, **given, **settings)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=IDS).logits)


def loss_on(model: Any, text: Path) -> float:
    ids = make_calibration(read_records(text, role="calibration"), tokenizer(), sequences=24, length=16, seed=0).ids
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["dense", "compressed_tensors"])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_what_was_measured_is_what_the_folder_is(
    method: str, layout: str, dtype: torch.dtype, text: Path, tmp_path: Path
) -> None:
    source = save_model_folder(mixture(initializer_range=0.2), tmp_path / "model", dtype=dtype)
    settings = {"name": method, "bits": 4, "group": 16}
    made = quantize(source, text, method=settings, format=layout, out=tmp_path / "run")
    assert len(made.layers) == len(made.outputs) == 2 * (4 + 4 * 3)
    assert all(1e-4 < loss < 0.1 for loss in (*made.layers.values(), *made.outputs.values()))
    ours, theirs = load_any(made.folder), AutoModelForCausalLM.from_pretrained(made.folder).eval()
    assert made.loss_before == pytest.approx(loss_on(load_any(source), text), rel=1e-5)
    assert made.loss_after == pytest.approx(loss_on(ours, text), rel=1e-5)
    for block, other in zip(ours.model.layers, theirs.model.layers, strict=True):
        assert torch.equal(block.mlp.experts.gate_up_proj, other.mlp.experts.gate_up_proj.float())
        assert torch.equal(block.mlp.experts.down_proj, other.mlp.experts.down_proj.float())
    if dtype == torch.float32:
        torch.testing.assert_close(logits(theirs), logits(ours), rtol=2e-5, atol=2e-5)
    assert not torch.allclose(logits(ours), logits(load_any(source)), rtol=1e-2, atol=1e-2)


def test_routers_norms_embeddings_and_head_are_as_they_were(folder: Path, text: Path, tmp_path: Path) -> None:
    made = quantize(folder, text, method="gptq", out=tmp_path / "run")
    before, after = inspect_model(folder), load_any(made.folder).state_dict()
    packed = json.loads((made.folder / "config.json").read_text())["quantization_config"]
    gates = [f"model.layers.{block}.block_sparse_moe.gate" for block in range(2)]
    assert packed["ignore"] == ["lm_head", *gates]
    kept = [name for name in before.tensors if name.removesuffix(".weight") not in made.layers]
    assert len(kept) == 2 + 1 + 2 * 3  # embedding and head, last norm; in a block two norms and the router
    for name in kept:
        assert bits(read_tensor(before, name)) == bits(after[name.replace("block_sparse_moe", "mlp")])


def test_an_audit_asks_the_folder_that_ships(folder: Path, text: Path, tmp_path: Path) -> None:
    made = quantize(folder, text, method="gptq", out=tmp_path / "run")
    model, shipped = load_model(folder), load_any(made.folder)
    before = logits(model)
    with Shipped(path=made.folder).applied(model, inspect_model(folder)):
        assert bits(logits(model)) == bits(logits(shipped))
    assert bits(logits(model)) == bits(before)


def test_without_text_every_matrix_is_rounded_by_itself(folder: Path, tmp_path: Path) -> None:
    method = {"name": "rtn", "bits": 4, "group": 16}
    made = quantize(folder, None, method=method, format="dense", out=tmp_path / "run")
    matrices = decoder_matrices(load_any(made.folder))
    expected = decoder_matrices(in_memory(folder, low_bit_model(folder, Grid(bits=4, group=16))))
    assert set(made.layers) == set(matrices) == set(expected)
    for name, matrix in matrices.items():
        assert bits(matrix.weight) == bits(expected[name].weight), name


def test_transformers_alone_continues_a_mixture_alike(tmp_path: Path) -> None:
    """With more than ten experts, which come in another order by their names."""
    pytest.importorskip("compressed_tensors")
    pytest.importorskip("accelerate")
    wanted = {}
    for name, form, grid in (
        ("dense", "dense", Grid(bits=3)),
        ("packed", "compressed_tensors", Grid(bits=4, group=16)),
        ("three", "compressed_tensors", Grid(bits=3, group=16)),
    ):
        model = low_bit_model(tiny_mixture(), grid)
        wanted[str(written(form, model, tmp_path / name))] = greedy(in_memory(tiny_mixture(), model))
    assert all(len(set(tokens)) > 10 for tokens in wanted.values())
    assert len({tuple(tokens) for tokens in wanted.values()}) == len(wanted)
    assert fresh(WITH_TRANSFORMERS, *wanted) == wanted
    assert {name: greedy(load_any(Path(name))) for name in wanted} == wanted


def test_experts_with_zero_points_are_still_not_opened_by_transformers(tmp_path: Path) -> None:
    """Notices when they are: the refusal can go then."""
    from transformers import CompressedTensorsConfig

    from letheon.quantization.formats import compressed_tensors

    model = low_bit_model(tiny_mixture(4), Grid(bits=4, scheme="asym", group=16))
    target = tmp_path / "asym"
    target.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed_tensors, "_experts_problems", lambda plan: [])
        compressed_tensors.CompressedTensors().write(model, target)
    assert bits(logits(load_any(target))) == bits(logits(in_memory(tiny_mixture(4), model)))
    for more in ({}, {"quantization_config": CompressedTensorsConfig(dequantize=True)}):
        with pytest.raises(RuntimeError, match="conversion of the weights"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the one argument is taken, and others would not be
            AutoModelForCausalLM.from_pretrained(target, **more)


REFUSED = [
    ({"format": "gptq"}, r"and 23 others belong to the experts.*format gptq with experts.*--format dense"),
    ({"format": "awq"}, r"format awq with experts"),
    ({"format": "gguf"}, r"format gguf with experts"),
    ({"format": "bitsandbytes", "method": {"name": "rtn", "levels": "nf4"}}, r"format bitsandbytes with experts"),
    ({"method": {"name": "gptq", "scheme": "asym"}}, r"experts have zero points. Use --method.scheme sym"),
    ({"method": "awq", "format": "dense"}, r"quantizer 'awq' does not know the experts"),
    ({"method": {"name": "gptq", "group": 20}}, r"a group of 20 does not divide the 32 inputs"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED, ids=[said[:30] for _, said in REFUSED])
def test_what_cannot_be_is_refused_before_anything_begins(
    settings: dict[str, Any], said: str, folder: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=said):
        quantize(folder, text, out=tmp_path / "run", **{"method": "gptq", **settings})
    assert not (tmp_path / "run").exists()


def test_an_expert_that_hears_nothing_stops_the_run_or_is_listed(text: Path, tmp_path: Path) -> None:
    model = mixture(num_experts_per_tok=1)
    router = model.model.layers[1].mlp.gate.weight
    with torch.no_grad():
        router[1:] = torch.stack([-router[0], torch.zeros_like(router[0]), torch.zeros_like(router[0])])
    source = save_model_folder(model, tmp_path / "model")
    with pytest.raises(CannotFinish, match=r"model\.layers\.1\.block_sparse_moe\.experts\.2\.w1"):
        quantize(source, text, method="gptq", out=tmp_path / "run")
    assert [file.name for file in (tmp_path / "run").rglob("block-*")] == ["block-00000.safetensors"]
    made = quantize(source, text, method="gptq", allow_rtn_fallback=True, out=tmp_path / "run")
    names = [
        f"model.layers.1.block_sparse_moe.experts.{expert}.{part}" for expert in (2, 3) for part in ("w1", "w3", "w2")
    ]
    assert made.fallen_back == names and not set(names) & set(made.outputs) and set(names) < set(made.layers)
    assert "6 layers could not be solved" in (made.folder / "README.md").read_text()
    (entry,) = RunFolder.open(tmp_path / "run").record().stages
    assert any("6 layers could not be solved" in warning and names[-1] in warning for warning in entry.warnings)
    assert made.loss_after == pytest.approx(loss_on(load_any(made.folder), text), rel=1e-5)
