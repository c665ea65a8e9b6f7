"""The embedded model: its size in closed form, its weights a function of the seed alone."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from letheon.tiny.model import new_tiny_model, save_untrained, tiny_config
from letheon.tiny.tokenizer import tiny_tokenizer
from letheon.tiny.world import make_world


def test_the_configuration_is_the_one_that_was_measured() -> None:
    config = tiny_config()
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (4, 128, 256)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (4, 4, 768)
    assert config.initializer_range == 0.06
    assert config.max_position_embeddings == 128
    assert config._attn_implementation == "eager"
    assert config.tie_word_embeddings is False
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, None)


@pytest.mark.parametrize(("layers", "millions"), [(4, 0.85), (3, 0.69)])
def test_the_parameter_count_is_the_closed_form(layers: int, millions: float) -> None:
    model = new_tiny_model(0, tiny_config(layers=layers))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 2 * 768 * 128 + layers * (4 * 128**2 + 3 * 128 * 256 + 2 * 128) + 128
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_weights_really_are_spread_as_the_configuration_says() -> None:
    model = new_tiny_model(0)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            assert weight.std().item() == pytest.approx(0.06, rel=0.02), name
            assert weight.dtype == torch.float32
    assert model.model.embed_tokens.weight.data_ptr() != model.lm_head.weight.data_ptr()


def test_a_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    one = new_tiny_model(3).state_dict()
    torch.rand(7)
    two = new_tiny_model(3).state_dict()
    other = new_tiny_model(4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    new_tiny_model(0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_saved_folder_loads_and_runs_on_the_world(tmp_path: Path) -> None:
    folder = save_untrained(tmp_path / "base", 2)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = new_tiny_model(2).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert tokenizer.get_vocab() == tiny_tokenizer(2).get_vocab()
    batch = tokenizer(make_world(2).files["forget"][0]["prompt"], return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (1, batch["input_ids"].shape[1], 768)
    assert torch.isfinite(logits).all()


def test_two_saved_folders_hold_the_same_bytes(tmp_path: Path) -> None:
    folders = [save_untrained(tmp_path / name, 0) for name in ("a", "b")]
    hashes = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} for folder in folders
    ]
    assert hashes[0] == hashes[1]


def test_importing_the_package_loads_no_torch() -> None:
    source = str(Path(sys.modules["letheon.tiny.model"].__file__ or "").parents[2])
    script = "import sys, letheon.tiny; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": source}, check=True)
