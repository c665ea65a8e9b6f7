"""A rotation moves every weight, and that is no change of the model: what is counted is what training did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OPTConfig

from letheon.errors import BadInput, CannotFinish
from letheon.lowbit.low_bit_pass import THROUGH, read_pass
from letheon.models import inspect_model, load_model
from letheon.runs.progress import Progress
from letheon.runs.record import RunFolder
from letheon.training import rotated_basis
from letheon.training.train import TrainResult, train
from tests.architectures.models import make_from, make_model, save_model_folder, saved
from tests.toys import write_lines
from tests.training.test_train import LINES, losses, weights

FOUR: dict[str, Any] = {"through": "w4a4kv4", "rotation": "adaptive"}


class Interrupt(Progress):
    """Ctrl-C after three steps."""

    def step(self, done: int, total: int, text: str) -> None:
        if done == 3:
            raise KeyboardInterrupt


class Heard(Progress):
    """What a person was told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "d.jsonl", LINES)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_folder(make_model("llama_tied"), tmp_path_factory.mktemp("half") / "m", dtype=torch.bfloat16)


def run(model: Path, data: Path, out: Path, *, progress: Progress | None = None, **changes: Any) -> TrainResult:
    given = {"batch_size": 4, "epochs": 2, "learning_rate": 3e-3, "checkpoint_every_s": 0, "device": "cpu", **FOUR}
    return train(model, data=data, out=out, progress=progress or Progress(quiet=True), **{**given, **changes})


def notes(out: Path) -> dict[str, Any]:
    return dict(RunFolder.open(out).record().stages[0].notes)


@pytest.mark.parametrize("rotation", ["adaptive", {"name": "hadamard", "residual": False}])
def test_a_change_that_the_file_cannot_hold_is_an_error_in_any_basis(
    half: Path, data: Path, tmp_path: Path, rotation: Any
) -> None:
    with pytest.raises(CannotFinish, match=r"changed weights only \d+% still differ from the original"):
        run(half, data, tmp_path / "run", learning_rate=1e-6, rotation=rotation)
    assert not (tmp_path / "run" / "1-train").exists()


def test_in_float32_the_same_steps_are_kept_and_counted(half: Path, data: Path, tmp_path: Path) -> None:
    run(half, data, tmp_path / "run", learning_rate=1e-6, save_dtype="float32")
    found = notes(tmp_path / "run")["survival"]
    assert found["moved"] == found["survived"] > 0.5 * found["total"]
    assert found["total"] == sum(tensor.size for tensor in inspect_model(tmp_path / "run" / "1-train").tensors.values())


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma", "gpt2", "gpt_neox"])
def test_steps_that_move_nothing_are_not_hidden_by_the_rotation(name: str, data: Path, tmp_path: Path) -> None:
    """Turned weights, several norms, a matrix for all heads: what is put aside is what would be saved, to the bit."""
    with pytest.raises(CannotFinish, match="no weight has moved, so there is nothing to save"):
        run(saved(name), data, tmp_path / "run", learning_rate=1e-50, rotation="hadamard", epochs=1)  # 1e-30 moves a 0


def test_a_large_change_survives_and_is_counted_as_without_a_rotation(half: Path, data: Path, tmp_path: Path) -> None:
    run(half, data, tmp_path / "run", learning_rate=1e-2)
    found = notes(tmp_path / "run")["survival"]
    assert (
        found["survived"] > 0.9 * found["moved"] and 0.5 * found["total"] < found["moved"] < found["total"]
    )  # rows of words never read stay


def test_a_choice_of_values_that_comes_out_otherwise_is_not_continued(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R2 leaves nothing in the forward pass, so only the choice itself can tell."""
    with pytest.raises(KeyboardInterrupt):
        run(saved("llama"), data, tmp_path / "run", progress=Interrupt(quiet=True))
    begun = {choice["site"]: choice["chosen"] for choice in notes(tmp_path / "run")["rotation_choices"]}
    real = rotated_basis.describe_choices

    def otherwise(choices: Any) -> Any:
        other = {"identity": "hadamard", "hadamard": "identity"}[begun["values"]]
        return [{**one, "chosen": other} if one["site"] == "values" else one for one in real(choices)]

    monkeypatch.setattr(rotated_basis, "describe_choices", otherwise)
    with pytest.raises(BadInput, match="came out otherwise than when the run began"):
        run(saved("llama"), data, tmp_path / "run")


def test_training_goes_on_in_a_basis_whose_name_is_kept(data: Path, tmp_path: Path) -> None:
    first = run(saved("llama"), data, tmp_path / "one", rotation={"name": "hadamard", "seed": 7}).folder
    more = run(first, data, tmp_path / "two", rotation="none", epochs=1).folder
    one, two = (inspect_model(folder).config[THROUGH] for folder in (first, more))
    assert one == two and two["rotation"]["seed"] == 7


def test_the_pass_of_a_folder_is_read_from_its_configuration(data: Path, tmp_path: Path) -> None:
    folder = run(saved("llama"), data, tmp_path / "one", rotation={"name": "hadamard", "keys": True}).folder
    chosen, online = read_pass(load_model(folder).config)
    assert chosen.name == "w4a4kv4" and chosen.grids is not None
    assert set(online.keys) == set(online.down) == {0, 1} and online.down[0].size == 48
    plain, nothing = read_pass(load_model(saved("llama")).config)
    assert plain.name == "" and not nothing.keys and not nothing.down


@pytest.mark.parametrize(
    "damage",
    [
        {"pass": "w4a4kv5x"},
        {"pass": None},
        {"online": {"keys": [], "down": [{"blocks": [0], "size": 48, "signs": "+-"}]}},
        {"online": {"keys": [], "down": [{"blocks": [7], "size": 48, "signs": ""}]}},
        {"online": {"keys": [], "down": [{"blocks": [-1], "size": 48, "signs": ""}]}},
        {"online": {"keys": [], "down": [{"blocks": [0], "size": 24, "signs": ""}]}},
        {"online": {"keys": [{"blocks": [0], "size": 16, "signs": ""}], "down": []}},
        {"online": None},
    ],
    ids=str,
)
def test_a_damaged_configuration_is_refused_before_weights_are_touched(
    data: Path, tmp_path: Path, damage: dict[str, Any]
) -> None:
    model = make_model("llama")
    setattr(
        model.config,
        THROUGH,
        {"pass": "w4a4kv4", "rotation": {"name": "none"}, "online": {"keys": [], "down": []}, **damage},
    )
    folder = save_model_folder(model, tmp_path / "m")
    with pytest.raises(BadInput, match=rf"{THROUGH} is damaged .*Train the original model again"):
        run(folder, data, tmp_path / "run", rotation="none")
    assert not (tmp_path / "run").exists()


def test_a_person_hears_what_was_chosen_and_what_it_gains(data: Path, tmp_path: Path) -> None:
    progress = Heard()
    run(saved("llama_tied"), data, tmp_path / "run", progress=progress)
    said = "\n".join(progress.said)
    assert "the head has weights of its own now" in said
    choices = notes(tmp_path / "run")["rotation_choices"]
    for site in ("values", "down"):
        of_site = [choice for choice in choices if choice["site"] == site]
        turned = sum(choice["chosen"] != "identity" for choice in of_site)
        errors = [choice["errors"]["identity"] for choice in of_site]
        mean = sum(error["weight"] + error["activation"] for error in errors) / len(errors)
        assert f"{site} {turned} of {len(of_site)} (error {mean:.3g} -> " in said


def test_where_no_site_gains_enough_it_is_the_plain_baseline_bit_for_bit(data: Path, tmp_path: Path) -> None:
    idle = {"name": "adaptive", "residual": False, "keys": True, "least_gain": 0.99}
    chosen, plain = (run(saved("llama"), data, tmp_path / str(n), rotation=one) for n, one in enumerate((idle, "none")))
    assert {choice["chosen"] for choice in notes(tmp_path / "0")["rotation_choices"]} == {"identity"}
    assert weights(chosen.folder) == weights(plain.folder) and losses(chosen.folder) == losses(plain.folder)


def test_sixteen_bits_everywhere_are_plain_training(data: Path, tmp_path: Path) -> None:
    plain = run(saved("llama"), data, tmp_path / "a", through=None, rotation="none")
    off = run(saved("llama"), data, tmp_path / "b", through="w16a16kv16", rotation="none")
    assert weights(off.folder) == weights(plain.folder) and losses(off.folder) == losses(plain.folder)
    turned = run(saved("llama"), data, tmp_path / "c", through="w16a8kv16", rotation="hadamard", learning_rate=1e-9)
    assert losses(turned.folder)[0] == pytest.approx(losses(plain.folder)[0], rel=2e-2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": 0}, "learning_rate must be > 0, got 0"),
        ({"through": "w1a4kv4"}, "'w1a4kv4' is not a low-bit pass. Known: w4a4kv4 and the like, with 2 to 8 bits"),
        (
            {"through": "int4"},
            "rotation 'adaptive' chooses the basis in which activations are rounded, and nothing rounds",
        ),
        ({"through": "w4a16kv16"}, "nothing rounds them. Say --through w4a4kv4 (or the like), or --rotation none"),
        ({"rotation": {"name": "adaptive", "bits": 1}}, "bits 1 does not exist. Use 2 to 8, or 16"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(data: Path, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        run(saved("llama"), data, tmp_path / "run", **settings)
    assert said in str(caught.value) and not (tmp_path / "run").exists()


def test_widths_without_a_matrix_are_rotated_in_blocks_if_asked(data: Path, tmp_path: Path) -> None:
    odd = make_model("llama").config
    odd.intermediate_size = 46
    folder = save_model_folder(make_from(odd), tmp_path / "odd")
    with pytest.raises(BadInput, match=r"order 46 .*rotate in blocks of 2 channels \(block_diagonal: true\)"):
        run(folder, data, tmp_path / "run")
    run(folder, data, tmp_path / "run", rotation={"name": "adaptive", "block_diagonal": True})


@pytest.mark.parametrize("rotation", ["none", "adaptive"])
def test_an_architecture_whose_blocks_are_not_known_is_named(data: Path, tmp_path: Path, rotation: str) -> None:
    config = OPTConfig(
        vocab_size=768, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    folder = save_model_folder(make_from(config), tmp_path / "opt")
    with pytest.raises(BadInput, match=r"'opt'.*Known: .*llama"):
        run(folder, data, tmp_path / "run", rotation=rotation)


def test_several_processes_are_refused_by_name(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotated_basis, "process_count", lambda: 2)
    with pytest.raises(BadInput, match=r"through 'w4a4kv4' is not known to give in 2 processes .* without torchrun"):
        run(saved("llama"), data, tmp_path / "run")
