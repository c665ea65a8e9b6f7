"""A low-rank change beside each layer: the original until it is added, the sum afterwards, and peft's own folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from letheon.errors import BadInput, MissingExtra
from letheon.models import as_matrix, decoder_linears, inspect_model, load_model
from letheon.numerics.grids import Grid
from letheon.runs.record import RunFolder
from letheon.training.loop import run_loop
from letheon.training.low_rank import change_of, factors, join_low_rank, low_rank_layers
from letheon.training.straight_through import straight_through
from letheon.unlearning import compatibility
from letheon.unlearning.scopes import adapter as module
from letheon.unlearning.scopes.adapter import Adapter
from tests.architectures.models import make_model, save_model_folder, saved
from tests.toys import bits, gpt2_double, llama
from tests.unlearning.test_forget import Interrupt, World, captured, metrics, run, weights

IDS = torch.arange(2, 18).reshape(2, 8)
SCOPE: dict[str, Any] = {"name": "adapter", "rank": 4}
HARD: dict[str, Any] = {"weight_decay": 0.3, "learning_rate": 1e-2}


def stirred(model: Any, seed: int = 0) -> Any:
    """The model with a change beside it that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    for layer in low_rank_layers(model).values():
        for factor in factors(layer):
            factor.data = torch.randn(factor.shape, generator=generator, dtype=torch.float64).to(factor.dtype)
    return model


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model(input_ids=ids).logits
    return found


# --- on a model


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "gpt_neox", "gemma"])
def test_it_begins_at_the_original_to_the_bit(name: str) -> None:
    plain, model = make_model(name), make_model(name)
    Adapter().attach(model, seed=0)
    assert torch.equal(logits(plain), logits(model))
    linears = decoder_linears(plain)
    assert list(low_rank_layers(model)) == list(linears)
    assert len(Adapter().select(model)) == 2 * len(linears)


def test_added_is_beside_in_float64() -> None:
    """GPT-2: its weights are turned, and nothing on its way is cast to float32."""
    model = gpt2_double()
    Adapter(rank=3, alpha=2.0).attach(model, seed=0)
    stirred(model)
    ids = IDS % 23
    beside = logits(model, ids).detach()
    assert all(factor.dtype == torch.float64 for layer in low_rank_layers(model).values() for factor in factors(layer))
    join_low_rank(model)
    torch.testing.assert_close(logits(model, ids).detach(), beside, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(beside, logits(gpt2_double(), ids), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["llama_grouped", "gpt2", "gpt_neox"])
def test_added_is_weight_plus_alpha_over_rank_times_the_product(name: str) -> None:
    model, plain = make_model(name), make_model(name)
    Adapter(rank=3, alpha=2.0).attach(model, seed=0)
    stirred(model)
    beside = logits(model).detach()
    expected = {}
    for layer_name, layer in decoder_linears(plain).items():
        down, up = (factor.detach() for factor in factors(low_rank_layers(model)[layer_name]))
        assert down.shape[0] == up.shape[1] == 3
        weight = as_matrix(layer, layer.weight.detach())  # type: ignore[arg-type]
        expected[layer_name] = weight + 2.0 / 3 * (up @ down)
    join_low_rank(model)
    torch.testing.assert_close(logits(model), beside, rtol=1e-3, atol=1e-3)
    for layer_name, layer in decoder_linears(model).items():
        torch.testing.assert_close(as_matrix(layer, layer.weight.detach()), expected[layer_name], rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]
    assert [key for key, _ in model.named_parameters()] == [key for key, _ in plain.named_parameters()]


def test_the_sum_with_a_half_precision_weight_is_formed_in_float32_when_it_is_asked_for() -> None:
    """Otherwise what the file loses of it could not be counted."""
    model = llama().bfloat16()
    Adapter(rank=2).attach(model, seed=0)
    changes = {}
    for name, layer in low_rank_layers(stirred(model)).items():
        assert all(factor.dtype == torch.float32 for factor in factors(layer))
        changes[name] = change_of(layer).detach().clone()
    left = join_low_rank(model)
    assert [bits(one) for one in model.parameters()] == [bits(one) for one in llama().bfloat16().parameters()]
    for name, parameter in model.named_parameters():
        change = changes.get(name.removesuffix(".weight"))
        exact = left.exact(name, parameter)
        assert exact is parameter if change is None else torch.equal(exact, parameter.float() + change)
    whole = llama()
    Adapter(rank=2).attach(whole, seed=0)
    assert not join_low_rank(whole).left


def test_draws_come_from_the_seed_and_from_nowhere_else() -> None:
    state = torch.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        model = llama()
        Adapter().attach(model, seed=seed)
        found.append({name: bits(factor) for name, factor in Adapter().select(model).items()})
        for layer in low_rank_layers(model).values():
            down, up = (factor.detach() for factor in factors(layer))
            bound = down.shape[1] ** -0.5
            assert not bool(up.any()) and 0.9 * bound < float(down.abs().max()) <= bound
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_patterns_choose_layers_and_idle_ones_are_refused() -> None:
    model = llama()
    Adapter(targets=("*.1.mlp.*", "*.q_proj")).attach(model, seed=0)
    assert set(low_rank_layers(model)) == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        *(f"model.layers.1.mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
    with pytest.raises(BadInput, match=r"adapter: target '\*\.h\.\*' fits no linear layer of LlamaForCausalLM\. Names"):
        Adapter(targets=("*.h.*",)).layers(llama())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_through_a_grid_the_sum_is_rounded_and_the_gradient_goes_to_the_factors(name: str) -> None:
    grid = Grid(bits=4)
    model = make_model(name)
    Adapter(rank=3).attach(model, seed=0)
    added = make_model(name)
    Adapter(rank=3).attach(added, seed=0)
    join_low_rank(stirred(added))
    stirred(model).requires_grad_(True)
    added.requires_grad_(True)
    with straight_through(model, grid), straight_through(added, grid):
        one, other = logits(model), logits(added)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        one.square().sum().backward()
        other.square().sum().backward()
    assert "forward" not in next(iter(low_rank_layers(model).values())).__dict__
    for layer_name, layer in low_rank_layers(model).items():
        slope = as_matrix(layer.base_layer, decoder_linears(added)[layer_name].weight.grad)  # type: ignore[arg-type]
        down, up = factors(layer)
        scale = 16.0 / 3
        torch.testing.assert_close(up.grad, scale * slope @ down.detach().t(), rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(down.grad, scale * up.detach().t() @ slope, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rank": 0}, "adapter needs 1 <= rank"),
        ({"alpha": 0.0}, "adapter needs alpha > 0, got 0.0"),
        ({"alpha": float("inf")}, "adapter needs alpha > 0, got inf"),
        ({"dropout": 0.1}, "adapter needs dropout 0, got 0.1: the loop draws nothing"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=re.escape(text)):
        Adapter(**settings)


# --- in a run


@pytest.mark.parametrize("changes", [{}, {"smooth": {"name": "sam", "rho": 0.1}}, {"balance": "ngdiff"}, {"through": "int4"}, {"optimizer": "sgd"}], ids=str)  # fmt: skip
def test_the_weights_themselves_keep_every_bit_until_the_end(
    world: World, tmp_path: Path, changes: dict[str, Any]
) -> None:
    loop = captured(world, tmp_path / "run", scope=SCOPE, **{**HARD, **changes})
    original = load_model(saved("llama"))
    run_loop(loop)
    moved = 0
    for name, parameter in loop.model.named_parameters():
        if name in loop.moving:
            moved += 1
            continue
        assert bits(parameter) == bits(original.get_parameter(name.replace(".base_layer", ""))), name
    assert moved == len(loop.moving) == 2 * len(decoder_linears(original))
    assert all(bool(factors(layer)[1].any()) for layer in low_rank_layers(loop.model).values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_run_saves_an_ordinary_folder_in_which_the_decoders_matrices_moved(
    world: World, tmp_path: Path, name: str
) -> None:
    made = run(world, tmp_path / "run", model=saved(name), scope=SCOPE, steps=10)
    before, after = load_file(saved(name) / "model.safetensors"), load_file(made.folder / "model.safetensors")
    assert list(before) == list(after)
    changed = {key for key in before if bits(before[key]) != bits(after[key])}
    assert changed == {key for key in before if before[key].ndim == 2 and any(p.isdigit() for p in key.split("."))}
    assert not (made.folder / "adapter").exists() and (made.folder / "config.json").is_file()
    losses = [line["forget_loss"] for line in metrics(made.folder)]
    assert losses[0] == pytest.approx(2 * 0.693147, rel=1e-4) and losses[-1] < losses[0]  # it began at the original


# peft asks transformers for something under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_change_alone_is_what_peft_loads_onto_the_original(world: World, tmp_path: Path, name: str) -> None:
    from peft import PeftModel

    original = saved(name)
    stamp = (original / "model.safetensors").read_bytes()
    made = run(world, tmp_path / "run", model=original, scope={**SCOPE, "merge": False}, **HARD)
    assert (original / "model.safetensors").read_bytes() == stamp
    config = json.loads((made.folder / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, str(original))
    loaded: Any = PeftModel.from_pretrained(load_model(original), str(made.folder / "adapter"))
    torch.testing.assert_close(logits(loaded.eval()), logits(load_model(made.folder)), rtol=1e-4, atol=1e-5)
    assert (logits(load_model(original)) - logits(loaded)).abs().max() > 1e-3
    # The folder itself is the merged model, the same as without the adapter beside it.
    merged = run(world, tmp_path / "merged", model=original, scope=SCOPE, **HARD)
    assert weights(merged.folder) == weights(made.folder)
    inspect_model(made.folder)


def test_a_half_precision_original_is_added_to_in_float32_and_what_its_file_loses_is_counted(
    world: World, tmp_path: Path
) -> None:
    half = save_model_folder(make_model("llama"), tmp_path / "half", dtype=torch.bfloat16)
    made = run(world, tmp_path / "run", model=half, scope=SCOPE, **HARD)
    assert inspect_model(made.folder).dtype == "bfloat16"
    kept = RunFolder.open(made.folder.parent).record().stages[0].notes["survival"]
    assert 0.5 * kept["moved"] <= kept["survived"] < kept["moved"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"through": "int4", "smooth": "sam"}, {"balance": "ngdiff", "rate": {"name": "gen", "every": 2}}, {"master_dtype": "param"}],
    ids=str,
)  # fmt: skip
def test_a_killed_run_continues_to_the_same_bits(world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
    scope = {**SCOPE, "merge": False}
    straight = run(world, tmp_path / "straight", scope=scope, **changes)
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "killed", progress=Interrupt(at=3), scope=scope, **changes)
    again = run(world, tmp_path / "killed", scope=scope, **changes)
    assert weights(again.folder) == weights(straight.folder) and metrics(again.folder) == metrics(straight.folder)
    file = Path("adapter", "adapter_model.safetensors")
    assert (again.folder / file).read_bytes() == (straight.folder / file).read_bytes()


# --- what is refused, before anything is loaded


def test_an_average_of_factors_is_refused_by_name(world: World, tmp_path: Path) -> None:
    text = "smoother 'weight_average' averages what moves over steps, and with scope 'adapter' two factors move"
    with pytest.raises(BadInput, match=text):
        run(world, tmp_path / "run", scope=SCOPE, smooth="weight_average")
    assert not (tmp_path / "run").exists()


def test_a_pattern_that_fits_nothing_is_found_before_a_weight_is_loaded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letheon.unlearning.forget.open_for_training", None)
    with pytest.raises(BadInput, match=r"adapter: target 'q_proj' fits no linear layer"):
        run(world, tmp_path / "run", scope={**SCOPE, "targets": ["q_proj"]})
    with pytest.raises(BadInput, match=r"layers: '\*\.h\.\*' fits no weight"):
        run(world, tmp_path / "run", scope={"name": "layers", "patterns": ["*.h.*"]})


def test_without_the_package_the_one_thing_that_is_said_is_what_to_install(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (compatibility, module):
        monkeypatch.setattr(place, "find_spec", lambda name: None)
    said = "scope 'adapter' needs packages that are not installed. Run: pip install 'letheon[adapters]'"
    with pytest.raises(BadInput) as found:
        run(world, tmp_path / "run", scope=SCOPE)
    assert found.value.problems == [said]
    with pytest.raises(MissingExtra, match=re.escape(said)):
        Adapter().attach(llama(), seed=0)
