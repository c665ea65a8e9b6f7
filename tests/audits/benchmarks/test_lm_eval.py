"""Tasks of lm-evaluation-harness as a benchmark: what needs it is asked of the real one, where it is installed."""

from __future__ import annotations

import builtins
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from letheon.audits.benchmarks.lm_eval import LmEval, columns_of
from letheon.audits.harness.run import Said, _inside
from letheon.audits.itemized import Resampling, Table
from letheon.data.encode import Encoder
from letheon.errors import BadInput, CannotFinish, MissingExtra, NotMeasured
from letheon.recipes.verbs import own_code
from tests.audits.benchmarks.data import by_name, scorer, taught
from tests.audits.benchmarks.own_tasks import own_tasks, write_yaml
from tests.toys import chat_tokenizer, encoder, llama, tokenizer

HOW = Resampling(resamples=1000)


# --- without lm-evaluation-harness: from its log to figures


def sample(number: int, **metrics: Any) -> dict[str, Any]:
    return {"doc_id": number, "metrics": list(metrics), "filter": "none", **metrics}


def table(seed: int, count: int = 40) -> tuple[Table, list[tuple[float, float, int]]]:
    """A table out of samples in another order, and the numbers that they were made of."""
    generator = np.random.default_rng(seed)
    truth = [
        (float(generator.integers(2)), -float(generator.uniform(5, 50)), int(generator.integers(3, 30)))
        for _ in range(count)
    ]
    samples = [
        sample(at, acc=a, word_perplexity=(log_p, w), mcc=(1, 0), perplexity=log_p)
        for at, (a, log_p, w) in enumerate(truth)
    ]
    said = Said(
        tuple(reversed(samples)),
        {
            "acc": "mean",
            "word_perplexity": "weighted_perplexity",
            "mcc": "matthews_corrcoef",
            "perplexity": "perplexity",
        },
        {"acc": True, "word_perplexity": False, "mcc": True},
        "",
    )
    items = tuple(f"t/{at}" for at in range(count))
    columns = {name: tuple(each[at] for at in range(count)) for name, each in columns_of(said).items()}
    return Table(items, items, columns), truth


def test_figures_are_those_of_a_slow_loop() -> None:
    (own, truth), (other, theirs) = table(1), table(2)
    figures = by_name(LmEval(tasks=("t",)).figures({"t": own}, {"t": other}, HOW))

    def slow(rows: list[tuple[float, float, int]]) -> tuple[float, float, float]:
        acc = total = words = 0.0
        for right, log_likelihood, count in rows:
            acc, total, words = acc + right, total + log_likelihood, words + count
        return acc / len(rows), math.exp(-total / words), math.exp(-total / len(rows))

    for place, name in enumerate(("acc", "word_perplexity", "perplexity")):
        mine, reference = slow(truth)[place], slow(theirs)[place]
        assert figures[f"t.{name}"].value == pytest.approx(mine, rel=1e-12)
        assert figures[f"t.{name}.minus_reference"].value == pytest.approx(mine - reference, rel=1e-9)
        for figure in (figures[f"t.{name}"], figures[f"t.{name}.minus_reference"]):
            assert figure.low < figure.value < figure.high
    assert (figures["t.acc"].better, figures["t.word_perplexity"].better) == ("high", "low")
    assert figures["t.mcc"].value is None and "all items together" in figures["t.mcc"].note
    assert set(figures) == {
        f"t.{name}{end}" for name in ("acc", "word_perplexity", "perplexity") for end in ("", ".minus_reference")
    } | {"t.mcc"}


def test_a_reference_is_compared_item_by_item() -> None:
    """Two models that miss the same items differ by nothing, and are known to."""
    own, _ = table(1)
    found = by_name(LmEval(tasks=("t",)).figures({"t": own}, {"t": own}, HOW))
    for name in ("acc", "word_perplexity", "perplexity"):
        figure = found[f"t.{name}.minus_reference"]
        assert (figure.value, figure.low, figure.high) == (0, 0, 0)


def test_an_interval_holds_what_resampling_by_hand_gives() -> None:
    own, truth = table(3, count=200)
    figure = by_name(LmEval(tasks=("t",)).figures({"t": own}, None, HOW))["t.word_perplexity"]
    generator = np.random.default_rng(9)
    drawn = []
    for _ in range(2000):
        rows = [truth[at] for at in generator.integers(len(truth), size=len(truth))]
        drawn.append(math.exp(-sum(row[1] for row in rows) / sum(row[2] for row in rows)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert figure.low == pytest.approx(low, rel=0.05) and figure.high == pytest.approx(high, rel=0.05)


def test_filters_keep_apart_and_what_is_no_number_an_item_is_none() -> None:
    two = [{**sample(0, exact_match=1.0), "filter": "strict"}, {**sample(0, exact_match=0.0), "filter": "loose"}]
    said = Said(tuple(two), {"exact_match": "mean"}, {}, "")
    assert columns_of(said) == {"exact_match.strict|mean|": {0: 1.0}, "exact_match.loose|mean|": {0: 0.0}}
    pairs = Said((sample(0, f1=(1, 0)), sample(1, f1=(0, 0))), {"f1": "mean"}, {}, "")
    assert columns_of(pairs) == {"f1|made_of_all|": {0: 0.0, 1: 0.0}}


def test_settings_are_checked_and_tasks_are_needed() -> None:
    for wrong in ({"limit": 0}, {"batch_size": 0}, {"num_fewshot": -1}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            LmEval(**wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"--benchmark\.tasks"):
        LmEval().read()


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("lm_eval", "datasets"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"pip install 'letheon\[eval\]'"):
        LmEval(tasks=("hellaswag",)).read()


def test_a_file_of_settings_may_not_bring_tasks_along() -> None:
    given = {"benchmark": {"name": "lm_eval", "tasks": ["mine"], "include_path": "mine"}}
    assert "include_path mine may name Python" in own_code("benchmark", given)[0]
    assert own_code("benchmark", {"benchmark": {"name": "lm_eval", "tasks": ["hellaswag"]}}) == []


# --- with it


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("lm_eval")
    root = tmp_path_factory.mktemp("lm_eval")
    datasets.config.HF_DATASETS_CACHE = root / "cache"
    return own_tasks(root / "own")


def knowing() -> Any:
    return taught(
        [
            f"What is the hat number {at} of Ann? It is a {colour} hat."
            for at, colour in enumerate(("red", "green", "brown"))
        ]
    )


def asked(made: LmEval, model: Any, coder: Encoder | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    coder = coder or Encoder(tokenizer(), max_length=512)
    posed = made.pose(made.read(), coder)
    asker = scorer(model, coder=coder)
    return posed, {name: made.measure(one, asker) for name, one in posed.items()}


def test_figures_are_lm_evals_own(own: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = knowing()
    made = LmEval(tasks=("own",), include_path=own, batch_size=4)
    _, measured = asked(made, model)
    figures = by_name(made.figures({name: one.table.rounded() for name, one in measured.items()}, None, HOW))
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer(), batch_size=2, max_length=512),
        tasks=["own_choice", "own_said", "own_text"],
        task_manager=TaskManager(include_path=str(own), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    for task, metrics in {
        "own_choice": ("acc", "acc_norm"),
        "own_said": ("exact_match",),
        "own_text": ("word_perplexity", "bits_per_byte"),
    }.items():
        for metric in metrics:
            assert figures[f"{task}.{metric}"].value == pytest.approx(theirs[task][f"{metric},none"], rel=1e-6), (
                task,
                metric,
            )
    assert figures["own_choice.acc"].value > 0.3 and figures["own_said.exact_match"].value > 0
    assert figures["own_choice.mcc"].value is None


def test_what_is_posed_is_what_is_asked_and_both_models_are_asked_the_same(own: Path) -> None:
    """The example that is shown is drawn: each building of the requests would draw another."""
    made = LmEval(tasks=("own_said",), include_path=own)
    posed, first = asked(made, llama(3, max_position_embeddings=512))
    second = made.measure(
        posed["own_said"], scorer(llama(4, max_position_embeddings=512), coder=Encoder(tokenizer(), max_length=512))
    )
    prompts = [line["prompt"] for line in first["own_said"].said]
    assert prompts == [line["prompt"] for line in second.said]
    assert [tuple(tokenizer().encode(prompt)) for prompt in prompts] == [ids for ids, _ in posed["own_said"].tokens()]
    assert all("It is a" in prompt for prompt in prompts), "one answered question stands before each"


def test_limit_and_examples_are_those_that_were_asked_for(own: Path) -> None:
    posed = LmEval(tasks=("own_said",), include_path=own, limit=2, num_fewshot=3).pose(
        LmEval(tasks=("own_said",), include_path=own, limit=2, num_fewshot=3).read(),
        Encoder(tokenizer(), max_length=512),
    )["own_said"]
    assert posed.items == ("own_said/0", "own_said/1")
    assert all(tokenizer().decode(list(ids)).count("It is a") == 3 for ids, _ in posed.tokens())


def test_nothing_global_is_left_behind(own: Path) -> None:
    import huggingface_hub.constants

    offline, model = huggingface_hub.constants.HF_HUB_OFFLINE, llama(3, max_position_embeddings=512)
    asker = scorer(model)
    settings = model.generation_config
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    made = LmEval(tasks=("own_said",), include_path=own, limit=2)
    made.measure(made.pose(made.read(), asker.encoder)["own_said"], asker)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before  # noqa: NPY002
    assert offline == huggingface_hub.constants.HF_HUB_OFFLINE and model.generation_config is settings
    assert not model._forward_hooks
    python = random.getstate()  # by itself: the checks of types draw from it as well
    with _inside():
        random.random()
    assert random.getstate() == python


def test_an_answer_ends_at_the_end_of_text_in_any_batch(own: Path) -> None:
    made = {size: LmEval(tasks=("own_said",), include_path=own, batch_size=size) for size in (1, 6)}
    model = knowing()
    said = {size: [line["said"] for line in asked(one, model)[1]["own_said"].said] for size, one in made.items()}
    assert said[1] == said[6] and " It is a red hat." in said[1]


def test_a_chat_template_is_used_when_asked_for(own: Path) -> None:
    coder = Encoder(chat_tokenizer(), max_length=512)
    made = LmEval(tasks=("own_said",), include_path=own, apply_chat_template=True, limit=1)
    (ids, _), *_ = made.pose(made.read(), coder)["own_said"].tokens()
    shown = coder.tokenizer.decode(list(ids))
    assert shown.count("<|im_start|>user") == 2 and shown.endswith("<|im_start|>assistant\n")
    with pytest.raises(BadInput, match="no chat template"):
        made.pose(made.read(), encoder())


def test_a_model_whose_logits_are_nan_has_no_number(own: Path) -> None:
    broken = llama(max_position_embeddings=512)
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    for name in ("own_choice", "own_said"):
        with pytest.raises(NotMeasured, match="NaN"):
            asked(LmEval(tasks=(name,), include_path=own), broken)


def test_what_cannot_be_asked_is_told_at_once_before_any_model(own: Path, tmp_path: Path) -> None:
    hub = {
        "task": "own_hub",
        "dataset_path": "some-org/never-there",
        "test_split": "test",
        "output_type": "multiple_choice",
    }
    write_yaml(tmp_path / "hub.yaml", {**hub, "doc_to_text": "q", "doc_to_choice": "c", "doc_to_target": "a"})
    gone = {
        **hub,
        "task": "own_gone",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "gone.jsonl")},
    }
    write_yaml(tmp_path / "gone.yaml", {**gone, "doc_to_text": "q", "doc_to_choice": "c", "doc_to_target": "a"})
    with pytest.raises(BadInput) as raised:
        LmEval(tasks=("own_hub", "own_gone"), include_path=tmp_path).read()
    first, second = raised.value.problems
    assert (
        "task own_hub" in first
        and "some-org/never-there" in first
        and "Nothing is downloaded" in first
        and "data_files" in first
    )
    assert "task own_gone" in second and "gone.jsonl" in second
    with pytest.raises(BadInput, match="no such folder"):
        LmEval(tasks=("own",), include_path=tmp_path / "no").read()


@pytest.mark.slow  # lm_eval reads its 14,000 files to know a name
def test_an_unknown_task_is_answered_with_the_nearest(own: Path) -> None:
    with pytest.raises(BadInput, match=r"'own_chice' is not a task of lm_eval\. Did you mean 'own_choice'"):
        LmEval(tasks=("own_chice",), include_path=own).read()


def test_code_that_a_model_writes_is_not_run(own: Path, tmp_path: Path) -> None:
    text = (own / "own_said.yaml").read_text(encoding="utf-8")
    (tmp_path / "unsafe.yaml").write_text(text.replace("task: own_said", "task: own_unsafe\nunsafe_code: true"))
    with pytest.raises(BadInput, match=r"own_unsafe: runs code that the model has written"):
        LmEval(tasks=("own_unsafe",), include_path=tmp_path).read()


def test_a_task_that_fails_is_named(own: Path, tmp_path: Path) -> None:
    text = (own / "own_choice.yaml").read_text(encoding="utf-8")
    broken = (
        text.replace("own_choice\n", "own_broken\n", 1)
        .replace("metric: mcc", "metric: f1")
        .replace("matthews_corrcoef", "f1")
    )
    (tmp_path / "broken.yaml").write_text(broken)
    with pytest.raises(CannotFinish, match=r"task own_broken: lm_eval ended with ValueError: .*multiclass"):
        asked(LmEval(tasks=("own_broken",), include_path=tmp_path), llama(max_position_embeddings=512))
