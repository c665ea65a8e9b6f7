"""A dry run against the real one: the same peak of tensor bytes, the same faults, and nothing read or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from letheon.audits import protocol
from letheon.cli.main import run
from letheon.errors import BadInput, UnknownName
from letheon.recipes import dryrun, rehearsal, verbs
from letheon.recipes.dryrun import DryRun, dry_run
from letheon.runs.progress import Progress
from letheon.training.memory import PeakBytes
from tests.architectures.models import mixture
from tests.toys import llama, tokenizer, write_lines

QUIET = Progress(quiet=True)
SIZE = {"layers": 1, "width": 64}
MIXTURE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 1, "num_experts_per_tok": 3}
CLOSE = pytest.approx(1.0, abs=0.25)
"""estimate / measured, as required; what is met here is far closer (pytest -rP prints it)."""

DATA = {"forget_data": "f.jsonl", "retain_data": "r.jsonl"}
STEPS = {"batch_size": 8, "steps": 3, "learning_rate": 1e-3}
GATED = {"name": "npo", "until": "holdout"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("train", {"data": "r.jsonl", "batch_size": 8, "epochs": 1, "learning_rate": 1e-3}),
    "train, micro-batches": (
        "train",
        {"data": "r.jsonl", "batch_size": 8, "micro_batch_size": 2, "epochs": 1, "learning_rate": 1e-3},
    ),
    "train, one step, bfloat16 file": (
        "train",
        {"model": "half", "data": "f.jsonl", "batch_size": 40, "epochs": 1, "learning_rate": 1e-2},
    ),
    "forget, npo + klr": ("forget", {**DATA, **STEPS, "method": "npo", "retain_term": "klr"}),
    "forget, npo + klr, micro-batches, texts repeated": (
        "forget",
        {**DATA, **STEPS, "method": "npo", "retain_term": "klr", "micro_batch_size": 4, "text_repeats": 2},
    ),
    "forget, npo + gdr, gate": ("forget", {**DATA, **STEPS, "holdout_data": "h.jsonl", "method": GATED}),
    "forget, gradient ascent alone": (
        "forget",
        {**STEPS, "forget_data": "f.jsonl", "method": "gradient_ascent", "retain_term": "none"},
    ),
    "forget, dpo + gdr": ("forget", {**DATA, **STEPS, "forget_data": "q.jsonl", "method": "dpo"}),
    "forget, idk + activation": (
        "forget",
        {**DATA, **STEPS, "forget_data": "q.jsonl", "method": "idk", "retain_term": "activation"},
    ),
    "forget, rmu + activation": ("forget", {**DATA, **STEPS, "method": "rmu", "retain_term": "activation"}),
    "forget, rmu + klr, gate": (
        "forget",
        {**DATA, **STEPS, "method": {"name": "rmu", "until": 9.0}, "retain_term": "klr"},
    ),
    "forget, simnpo + activation, gate, micro-batches": (
        "forget",
        {
            **DATA,
            **STEPS,
            "holdout_data": "h.jsonl",
            "method": {"name": "simnpo", "until": "holdout"},
            "retain_term": "activation",
            "micro_batch_size": 4,
        },
    ),
    "forget, inside bins": ("forget", {**DATA, **STEPS, "scope": "in_bin"}),
    "forget, ngdiff, fitted rate": ("forget", {**DATA, **STEPS, "balance": "ngdiff", "rate": "gen"}),
    "forget, few rows": ("forget", {**DATA, **STEPS, "scope": "sure"}),
    "forget, few rows, others every step": (
        "forget",
        {**DATA, **STEPS, "scope": {"name": "sure", "refresh": "step"}},
    ),
    "forget, adapter": ("forget", {**DATA, **STEPS, "scope": "adapter"}),
    "forget, adapter through a grid": (
        "forget",
        {**DATA, **STEPS, "scope": {"name": "adapter", "merge": False}, "through": "int4", "smooth": "sam"},
    ),
    "forget, few rows, held as stored": (
        "forget",
        {**DATA, **STEPS, "model": "half", "weights": "stored", "scope": "sure", "learning_rate": 1e-2},
    ),
    "forget, adapter, held as stored": (
        "forget",
        {**DATA, **STEPS, "model": "half", "weights": "stored", "scope": "adapter", "learning_rate": 1e-2},
    ),
    "forget, all as the file has them": (
        "forget",
        {**DATA, **STEPS, "model": "half", "weights": "stored", "master_dtype": "param", "learning_rate": 1e-2},
    ),
    "forget, through a grid": ("forget", {**DATA, **STEPS, "through": "int4"}),
    "forget, through four bits, rotated": (
        "forget",
        {**DATA, **STEPS, "through": "w4a4kv4", "rotation": "hadamard", "micro_batch_size": 2},
    ),
    "train, through four bits, rotated": (
        "train",
        {
            "model": "tied",
            "data": "r.jsonl",
            "epochs": 1,
            "batch_size": 4,
            "through": "w4a4kv4",
            "rotation": "adaptive",
        },
    ),
    "forget, plain descent": ("forget", {**DATA, **STEPS, "optimizer": "sgd"}),
    "quantize": ("quantize", {}),
    "quantize, bfloat16 file": (
        "quantize",
        {"model": "half", "method": {"name": "rtn", "levels": "nf4"}, "format": "dense"},
    ),
    "quantize, gptq on text": (
        "quantize",
        {"method": "gptq", "calibration_data": "r.jsonl", "sequence_length": 32, "sequences": 8},
    ),
    "quantize, gptaq on text": (
        "quantize",
        {"method": "gptaq", "calibration_data": "r.jsonl", "sequence_length": 32, "sequences": 8, "format": "dense"},
    ),
    "quantize, gptaq on text, experts": (
        "quantize",
        {
            "model": "mixture",
            "method": "gptaq",
            "calibration_data": "r.jsonl",
            "sequence_length": 32,
            "sequences": 8,
            "format": "dense",
        },
    ),
    "quantize, experts": ("quantize", {"model": "mixture"}),
    "audit, invented names": ("audit", {**DATA, "original": "half", "resamples": 1000}),
    "audit, experts": ("audit", {**DATA, "model": "mixture", "original": "mixture", "resamples": 1000}),
    "audit, holdout, shipped": (
        "audit",
        {**DATA, "original": "m", "holdout_data": "h.jsonl", "shipped": "m", "resamples": 1000},
    ),
    "audit, reference": ("audit", {**DATA, "original": "m", "reference": "half", "resamples": 1000}),
    "audit, relearned": (
        "audit",
        {**DATA, "original": "m", "reference": "half", "also": {"name": "relearn", "steps": [1, 3]}, "resamples": 1000},
    ),
    **{
        f"audit, {name}": (
            "audit",
            {**DATA, "original": "m", "reference": "half", "also": {"name": name, "steps": [3]}, "resamples": 1000},
        )
        for name in ("relearn_out", "relearn_lora", "soft_prompt", "latent_attack")
    },
}
SLOW = (
    "forget, few rows, others every step",
    "forget, adapter through a grid",
    "forget, adapter, held as stored",
    "forget, all as the file has them",
    "forget, few rows",
    "train, micro-batches",
    "forget, npo + klr, micro-batches, texts repeated",
    "forget, simnpo + activation, gate, micro-batches",
    "forget, rmu + activation",
    "forget, dpo + gdr",
    "forget, idk + activation",
    "forget, rmu + klr, gate",
    "audit, relearned",
    "audit, relearn_out",
    "audit, relearn_lora",
    "audit, soft_prompt",
    "audit, latent_attack",
    "forget, ngdiff, fitted rate",
    "train",
    "train, one step, bfloat16 file",
    "forget, npo + klr",
    "forget, inside bins",
    "forget, plain descent",
    "quantize",
    "audit, holdout, shipped",
    "audit, reference",
    "audit, experts",
)
"""What others nearly cover."""


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small models, one stored in bfloat16, one with a tied head, and data whose activations outweigh them."""
    folder = tmp_path_factory.mktemp("dryrun")
    for name, model in (
        ("m", llama(**SIZE)),
        ("half", llama(1, **SIZE).bfloat16()),
        ("mixture", mixture(**MIXTURE)),
        ("tied", llama(2, **SIZE, tie_word_embeddings=True)),
    ):
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    (folder / "protocols").mkdir()
    (folder / "protocols" / "quick-1.yaml").write_text(PROTOCOL)
    words = ("red", "blue", "river", "stone", "potter", "lives", "near", "the", "old", "mill", "works", "with", "clay")

    def sentence(start: int, length: int) -> str:
        return " ".join(words[(start * 7 + place * 5) % len(words)] for place in range(length))

    for role, count in (("f", 10), ("r", 14), ("h", 10)):
        questions = [
            {
                "prompt": f"Who is {role.upper()}ann{number} of the {sentence(number, 3 + number)}?",
                "answer": sentence(number + 3, 1 + number % 2),
                "unit": f"{role}{number // 2}",
                "paraphrase": [f"Tell me of {role.upper()}ann{number}."],
            }
            for number in range(count)
        ]
        length = 30 if role == "r" else 6  # an audit continues texts of the others, token by token
        texts = [{"text": f"{role} {sentence(number, length)}", "unit": f"{role}t{number}"} for number in range(4)]
        write_lines(folder / f"{role}.jsonl", [*questions, *texts])
        if role == "f":
            write_lines(folder / "q.jsonl", questions)  # what can be refused: questions alone
    return folder


PROTOCOL = """
name: quick-1
level: 0.05
resamples: 1000
limits: {forget: 800, retain: 400, holdout: 800, general: 400}
conditions: {as_is: {name: as_is}, int8: {name: quantized, bits: 8}, shipped: {name: shipped}}
probes: [knowledge, verbatim, membership, utility]
required: [{columns: [forget_accuracy], conditions: [as_is, int8, shipped], margin: 0.15, side: above}]
utility: [{columns: [retain_accuracy], margin: 0.10}]
generated: {columns: [forget_rouge, verbatim], conditions: [as_is]}
"""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Timings that no test looks at, and a protocol of few conditions."""
    monkeypatch.setattr(rehearsal, "_CALIBRATION_S", 0.001)
    monkeypatch.setattr(protocol, "_FOLDER", place / "protocols")


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with all of that."""
    for file in place.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.setenv("LETHEON_CACHE", str(tmp_path / "cache"))  # no audit finds what another has kept
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(verb: str, settings: dict[str, Any]) -> int:
    """Peak of tensor bytes of the verb itself."""
    rest = dict(settings)
    with PeakBytes(counts_meta=False) as counted:  # a blueprint is no memory
        verbs.function(verb)(rest.pop("model"), progress=QUIET, **rest)
    return counted.peak


def settings_of(case: str) -> tuple[str, dict[str, Any]]:
    verb, settings = CASES[case]
    return verb, {"model": "m", "out": "out", **settings}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_the_peak_is_that_of_the_real_run(case: str, here: Path) -> None:
    verb, settings = settings_of(case)
    found = dry_run(verb, settings)
    assert found.peak is not None, found.warnings
    real = measured(verb, settings)
    print(f"{case}: estimate {found.peak}, measured {real}, ratio {found.peak / real:.3f}")
    assert found.peak / real == CLOSE
    assert sum(found.memory.values()) == found.peak
    assert found.seconds is not None and found.seconds > 0


@pytest.mark.parametrize("case", ["forget, npo + gdr, gate", "quantize", "audit, invented names"])
def test_no_weight_is_read_and_nothing_is_written(case: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors
    import transformers

    def refuse(*args: Any, **settings: Any) -> Any:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    before = files(here)
    verb, settings = settings_of(case)
    found = dry_run(verb, settings)
    assert found.peak is not None, found.warnings
    assert files(here) == before


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file below, its size and when it was changed."""
    found = [*folder.glob("**/*"), *folder.glob("*/*")]  # the second looks into linked folders too
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_parts_of_the_memory_are_what_they_say(here: Path) -> None:
    """With micro-batches all of them are there at the highest moment."""
    verb, settings = settings_of("forget, npo + klr, micro-batches, texts repeated")
    memory = dry_run(verb, settings).memory
    model = llama(**SIZE)
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert memory["weights"] == pytest.approx(weights, rel=0.01)  # and a few buffers
    assert memory["gradients"] == weights
    assert memory["optimizer"] == pytest.approx(2 * weights, rel=0.01)  # and a count of steps each
    assert memory["references"] > 4 * model.lm_head.weight.numel()  # a copy of the head, and hidden states
    assert memory["activations"] > 0


# --- what is wrong


FAULTY: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("train", {"model": "no", "data": "no.jsonl", "rate": "cosin"}),
    "train, settings": ("train", {"model": "m", "data": "r.jsonl", "epochs": "many", "bath_size": 3}),
    "forget": ("forget", {"model": "no", "forget_data": "f.jsonl", "method": "npoo", "device": "gpu"}),
    "forget, no holdout": ("forget", {"model": "m", **DATA, "method": GATED}),
    "forget, overlap": ("forget", {"model": "m", **DATA, "holdout_data": "r.jsonl"}),
    "quantize": ("quantize", {"model": "no", "method": "rtnn", "format": "dens"}),
    "quantize, group": ("quantize", {"model": "m", "method": {"name": "rtn", "group": 24}}),
    "audit": ("audit", {"model": "no", "original": "no2", "forget_data": "f.jsonl", "protocol": "quick-9"}),
    "audit, nothing given": ("audit", {"model": "m"}),
    "audit, another vocabulary": ("audit", {"model": "m", **DATA, "original": "other"}),
    "audit, what does not fit": ("audit", {"model": "short", **DATA, "original": "short"}),
    "benchmark": ("benchmark", {"model": "no", "benchmark": {"name": "wmdp", "data": "no.jsonl"}, "seed": -1}),
    "benchmark, nothing given": ("benchmark", {"model": "m"}),
    "benchmark, what does not fit": ("benchmark", {"model": "short", "benchmark": {"name": "people"}}),
    "out is no run": ("train", {"model": "m", "data": "r.jsonl", "out": "m"}),
}


@pytest.mark.parametrize("case", FAULTY)
def test_faults_are_those_of_the_verb(case: str, here: Path) -> None:
    for name, window in (("other", 128), ("short", 4)):
        llama(max_position_embeddings=window).save_pretrained(here / name)
        changed = tokenizer()
        if name == "other":
            changed.add_tokens(["potter"])
        changed.save_pretrained(here / name)
    verb, settings = FAULTY[case]
    rest = dict(settings)
    with pytest.raises(BadInput) as real:
        verbs.function(verb)(rest.pop("model"), progress=QUIET, **rest)
    with pytest.raises(BadInput) as found:
        dry_run(verb, settings)
    assert found.value.problems == real.value.problems


def test_an_unknown_verb_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"'forgt' is not a verb\. Did you mean 'forget'\?"):
        dry_run("forgt", {})


def test_an_architecture_that_transformers_does_not_know_is_a_fault(here: Path) -> None:
    strange = here / "strange"
    llama().save_pretrained(strange)
    tokenizer().save_pretrained(strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    with pytest.raises(BadInput, match=r"'lama' as a causal language model"):
        dry_run("train", {"model": "strange", "data": "r.jsonl"})


def test_warnings_are_those_of_the_verb(here: Path) -> None:
    lines = [{"text": f"{name} {'long ' * 200}"} for name in ("Ada", "Bo")]
    write_lines(here / "long.jsonl", lines)
    found = dry_run("forget", {"model": "m", "forget_data": "long.jsonl", "retain_term": "none", "steps": 1})
    assert any("no 'unit' field" in text for text in found.warnings)
    assert any("2 of 2 records are longer than the context window" in text for text in found.warnings)
    found = dry_run("audit", {"model": "m", "original": "m", "forget_data": "long.jsonl", "retain_data": "r.jsonl"})
    assert any("records are longer than the context window" in text for text in found.warnings)


# --- what cannot be estimated


MINE = '''"""Mine.

Source: me.  Checked against: nothing.
"""
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Mine:
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    denominator: ClassVar[str] = "token"

    def loss(self, logits):
        BODY
'''


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return logits.__cuda_array_interface__, 1", ""),
        ("raise KeyError('values')", "KeyError: 'values'"),
        ("raise RuntimeError", "RuntimeError"),
    ],
)
def test_a_method_that_cannot_be_rehearsed_is_a_warning(here: Path, body: str, reason: str) -> None:
    (here / "mine.py").write_text(MINE.replace("BODY", body))
    settings = {"model": "m", **DATA, "method": "./mine.py", "steps": 2}
    found = dry_run("forget", settings)
    assert (found.peak, found.seconds, found.steps, found.memory) == (None, None, None, {})
    (text,) = [text for text in found.warnings if "could not be estimated" in text]
    assert text.startswith(f"memory and time could not be estimated: {here / 'mine.py'} does what needs real values")
    assert reason in text and text.endswith("A short real run shows whether it works, such as --steps 1")
    assert (
        str(found)
        == f"forget: no fault in the inputs, but what runs was not tried; nothing was written\nwarning: {text}"
    )


# --- what is said


def test_more_than_there_is_room_for_is_a_warning(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"model": "m", "out": "out"}
    peak = dry_run("quantize", settings).peak
    assert peak is not None
    monkeypatch.setattr(dryrun, "_free_bytes", lambda device: int(peak / dryrun.TIGHT) + 1)
    assert dry_run("quantize", settings).warnings == ()
    monkeypatch.setattr(dryrun, "_free_bytes", lambda device: int(peak / dryrun.TIGHT) - 1)
    (text,) = dry_run("quantize", settings).warnings
    assert (
        text == f"{dryrun._size(peak)} is more than cpu has room for. Use a larger machine"
    )  # nothing to make smaller
    monkeypatch.setattr(dryrun, "_free_bytes", lambda device: None)
    assert dry_run("quantize", settings).warnings == ()


def test_a_verb_with_steps_is_told_of_smaller_ones(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dryrun, "_free_bytes", lambda device: 1000)
    found = dry_run(*settings_of("train"))
    (text,) = found.warnings
    assert text.endswith("room for. Use a smaller --batch-size or --micro-batch-size, or a larger machine")
    assert found.steps == 3  # 18 records, 8 a step
    assert found.step_seconds is not None and found.seconds is not None
    assert found.seconds >= 3 * found.step_seconds > 0


def test_free_memory_is_what_the_system_says() -> None:
    free = dryrun._free_bytes("cpu")
    assert free is not None and free > 10**7


def test_the_command_says_it_in_words_and_as_json(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dryrun, "_free_bytes", lambda device: 3_000_000_000)
    words = ["forget", "m", "--forget", "f.jsonl", "--retain", "r.jsonl", "--steps", "3", "--dry-run"]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("forget: all inputs are in order; nothing was run or written\nmemory ")
    assert "of tensors at the highest moment (free on cpu now: 3 GB)" in said
    assert "weights, float32 copies included" in said and "AdamW's moments" in said
    assert "with at most 3 steps of " in said and said.endswith("; rough\n")
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], found["verb"], found["device"], found["steps"]) == ("forget", "forget", "cpu", 3)
    assert found["peak"] == sum(found["memory"].values())
    assert set(found["memory"]) == {"weights", "gradients", "optimizer", "references", "activations"}
    assert (found["free"], found["warnings"], found["exit_code"]) == (3_000_000_000, [], 0)
    assert run(["forget", "no", "--forget", "f.jsonl", "--method", "npoo", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "'npoo' is not a forget term" in said and "MODEL no: no such folder" in said


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (999_700, "1 MB"), (1_230_000, "1.23 MB"), (4e12, "4 TB")],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert dryrun._size(int(size)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (9.94, "9.9 s"), (119.0, "119 s"), (120.0, "2 min"), (7100.0, "118 min"), (9000.0, "2.5 h")],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert dryrun._time(seconds) == text


def test_a_dry_run_of_a_verb_without_steps_speaks_of_none() -> None:
    found = DryRun("quantize", "cpu", {"weights": 2000, "gradients": 0}, 2000, None, None, None, 3.0, ("mind",))
    assert str(found).splitlines() == [
        "quantize: all inputs are in order; nothing was run or written",
        "memory       2 kB  of tensors at the highest moment",
        "             2 kB  weights, float32 copies included",
        "          0 bytes  gradients",
        "          0 bytes  AdamW's moments",
        "          0 bytes  activations and all that is temporary",
        "time          3 s; rough",
        "warning: mind",
    ]


def test_warnings_of_fields_that_are_nearly_known(here: Path) -> None:
    write_lines(here / "typo.jsonl", [{"text": f"{name} lives near the mill", "unti": name} for name in ("Ada", "Bo")])
    found = dry_run("forget", {"model": "m", "forget_data": "typo.jsonl", "retain_term": "none", "steps": 1})
    assert any("field 'unti' is not known and not used. Did you mean 'unit'?" in text for text in found.warnings)
    found = dry_run("train", {"model": "m", "data": "typo.jsonl"})
    assert any("field 'unti' is not known and not used" in text for text in found.warnings)
