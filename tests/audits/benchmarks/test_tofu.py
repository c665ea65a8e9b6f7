"""TOFU against a slow second implementation that shares no line with it, and the oracles of its paper."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from letheon.audits.benchmarks.tofu import Tofu
from letheon.audits.itemized import Figure, Resampling, Table
from letheon.data.encode import Encoder
from letheon.errors import BadInput
from tests.audits.benchmarks.data import by_name, scorer, taught, tofu_files, tofu_rows, write
from tests.audits.fakes import uniform_model
from tests.toys import chat_tokenizer, llama, tokenizer

HOW = Resampling(seed=0, resamples=1000)


def measured(made: Tofu, model: Any, coder: Encoder | None = None) -> dict[str, Table]:
    coder = coder or Encoder(tokenizer(), max_length=256)
    asker = scorer(model, coder=coder)
    return {name: made.measure(one, asker).table.rounded() for name, one in made.pose(made.read(), coder).items()}


def files(tmp_path: Path, **sizes: int) -> Path:
    return tofu_files(tmp_path / "tofu", **{"forget": 25, "other": 22, **sizes})


class Slow:
    """One item at a time, float64, no cache, no batch."""

    def __init__(self, model: Any, form: str) -> None:
        self.model, self.form = model, form
        self.tokenizer = tokenizer()

    def loss(self, question: str, answer: str) -> float:
        """Mean over the answer's tokens and the end of text."""
        shown = f"Question: {question}\n" + ("Answer:" if self.form == "base" else "")
        whole = shown + (f" {answer}" if self.form == "base" else f"Answer: {answer}")
        ids = [*self.tokenizer.encode(whole, add_special_tokens=False), 1]
        start = len(self.tokenizer.encode(shown, add_special_tokens=False))
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
        log_probs = torch.log_softmax(logits, -1)
        return -mean(float(log_probs[at - 1, ids[at]]) for at in range(start, len(ids)))

    def answer(self, question: str, total: int) -> str:
        shown = f"Question: {question}\n" + ("Answer:" if self.form == "base" else "")
        ids = self.tokenizer.encode(shown, add_special_tokens=False)
        start = len(ids)
        while len(ids) < total:
            with torch.no_grad():
                token = int(self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == 1:
                break
            ids.append(token)
        return str(self.tokenizer.decode(ids[start:], skip_special_tokens=True))

    def figures(self, folder: Path, total: int) -> dict[str, float]:
        rouge = RougeScorer(["rougeL"], use_stemmer=True)
        found: dict[str, float] = {}
        nine: dict[str, list[float]] = {"geometric": [], "arithmetic": []}
        for name, stem in (
            ("forget", "forget01"),
            ("retain", "retain"),
            ("real_authors", "real_authors"),
            ("world_facts", "world_facts"),
        ):
            text = (folder / f"{stem}_perturbed.json").read_text()
            rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
            probs, recalls, ratios = [], [], {"geometric": [], "arithmetic": []}  # type: ignore[var-annotated]
            shares: list[float] = []
            for row in rows:
                p = math.exp(-self.loss(row["question"], row["answer"]))
                wrong = [self.loss(row["question"], one) for one in row["perturbed_answer"]]
                right = self.loss(row["question"], row.get("paraphrased_answer", row["answer"]))
                is_general = "paraphrased_answer" not in row
                probs.append(p / (p + sum(math.exp(-one) for one in wrong)) if is_general else p)
                good, bad = math.exp(-right), math.prod(math.exp(-one) for one in wrong) ** (1 / len(wrong))
                shares.append(good / (good + bad))
                ratios["geometric"].append(math.exp(right - mean(wrong)))
                ratios["arithmetic"].append(mean(math.exp(-one) for one in wrong) / math.exp(-right))
                recalls.append(rouge.score(row["answer"], self.answer(row["question"], total))["rougeL"].recall)
            found[f"{name}.probability" + ("_normalised" if is_general else "")] = mean(probs)
            found[f"{name}.rougeL_recall.stem"] = mean(recalls)
            found[f"{name}.prob_mean.truth_ratio_geometric"] = mean(shares)
            for variant, each in ratios.items():
                truth = mean(min(r, 1 / r) if name == "forget" else max(0, 1 - r) for r in each)
                found[f"{name}.truth_ratio_{variant}"] = truth
                if name != "forget":
                    nine[variant] += [mean(probs), mean(recalls), truth]
        for variant, values in nine.items():
            found[f"model_utility.truth_ratio_{variant}"] = harmonic_mean(values)
        return found


@cache
def lively() -> Any:
    """Has seen some items of each set, so that no number is 0."""
    texts = []
    for name, count, step in (("Ann", 6, 2), ("Bo", 6, 1), ("real_authors", 7, 1), ("world_facts", 7, 1)):
        for row in tofu_rows(name, count, wrong=3, is_paraphrased=name == "Bo")[::step]:
            answers = {row["answer"], row.get("paraphrased_answer", row["answer"])}
            texts += [f"Question: {row['question']}\nAnswer: {answer}" for answer in sorted(answers)]
    return taught(texts, window=256)


@pytest.mark.parametrize("form", ["base", "phi"])
def test_every_aggregate_is_that_of_a_slow_second_implementation(form: Any, tmp_path: Path) -> None:
    model = lively()
    folder = files(tmp_path, forget=6, other=6)
    made = Tofu(data=folder, split="forget01", form=form, longest=56)
    found = by_name(made.figures(measured(made, model), None, HOW))
    expected = Slow(model, form).figures(folder, 56)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=2e-5, abs=1e-7), name
    variants = ("geometric", "arithmetic")
    assert set(found) - set(expected) == {f"forget_quality.ks.truth_ratio_{variant}.p" for variant in variants}
    assert 0.01 < expected["model_utility.truth_ratio_geometric"] != expected["model_utility.truth_ratio_arithmetic"]
    assert expected["forget.rougeL_recall.stem"] != expected["retain.rougeL_recall.stem"]


def test_rouge_knows_words_by_their_stems(tmp_path: Path) -> None:
    """Of the five words of "It is a red hat" the answer has two, with other endings."""
    made = Tofu(data=files(tmp_path, forget=1, other=1), split="forget01")
    asker = scorer(coder=Encoder(tokenizer(), max_length=256))
    asker.continuations = lambda *_, **__: ["Reds, hats!"]  # type: ignore[method-assign]
    posed = made.pose(made.read(), asker.encoder)["forget"]
    assert made.measure(posed, asker).table.columns["rougeL_recall.stem"] == (0.4,)


def test_a_uniform_model_knows_nothing(tmp_path: Path) -> None:
    """P = 1 / V, R = 1, so the forget truth ratio is 1 and that of utility 0; the normalised P is 1 of four."""
    made = Tofu(data=files(tmp_path), split="forget01", longest=40)
    found = by_name(made.figures(measured(made, uniform_model()), None, HOW))
    assert found["forget.probability"].value == pytest.approx(1 / 768, rel=1e-5)
    for variant in ("geometric", "arithmetic"):
        assert found[f"forget.truth_ratio_{variant}"].value == pytest.approx(1, abs=1e-6)
        assert found[f"retain.truth_ratio_{variant}"].value == pytest.approx(0, abs=1e-6)
        assert found[f"model_utility.truth_ratio_{variant}"].value == pytest.approx(0, abs=1e-5)
    assert found["world_facts.probability_normalised"].value == pytest.approx(0.25, rel=1e-5)
    assert found["forget.prob_mean.truth_ratio_geometric"].value == pytest.approx(0.5, abs=1e-6)


def test_forget_quality_against_itself_is_one_and_against_another_is_named(tmp_path: Path) -> None:
    made = Tofu(data=files(tmp_path), split="forget01", longest=40)
    tables = measured(made, llama(1, max_position_embeddings=256))
    others = measured(made, llama(2, max_position_embeddings=256))
    name = "forget_quality.ks.truth_ratio_geometric"
    same = by_name(made.figures(tables, tables, HOW))
    assert (same[f"{name}.p"].value, same[f"{name}.D"].value, same[f"{name}.log10_p"].value) == (1, 0, 0)
    apart = by_name(made.figures(tables, others, HOW))
    assert 0 < apart[f"{name}.D"].value <= 1 and apart[f"{name}.p"].value < 1
    assert apart["forget_quality.ks.truth_ratio_arithmetic.p"].value < 1
    assert "n 25 and 25; never below 10^-13.8" in apart[f"{name}.p"].note
    absent = by_name(made.figures(tables, None, HOW))[f"{name}.p"]
    assert absent.value is None and "letheon train BASE --data retain99.jsonl" in absent.note
    few = {"forget": Table(*_first(tables["forget"], 19))}
    short = by_name(made.figures({**tables, **few}, few, HOW))[f"{name}.p"]
    assert short.value is None and "19 items are too few" in short.note


def _first(table: Table, n: int) -> tuple[Any, Any, Any]:
    return table.items[:n], table.units[:n], {name: values[:n] for name, values in table.columns.items()}


def test_utility_is_zero_with_one_zero_and_has_an_interval(tmp_path: Path) -> None:
    made = Tofu()
    rng = np.random.default_rng(0)

    def table(n: int, **fixed: float) -> Table:
        columns = {
            "probability": rng.uniform(0.3, 0.9, n),
            "probability_normalised": rng.uniform(0.3, 0.9, n),
            "rougeL_recall.stem": rng.uniform(0.3, 0.9, n),
            "log_truth_ratio.geometric": -rng.uniform(0.3, 0.9, n),
            "log_truth_ratio.arithmetic": -rng.uniform(0.1, 0.3, n),
        }
        columns |= {name.replace("_stem", ".stem"): np.full(n, value) for name, value in fixed.items()}
        units = tuple(f"u{at // 5}" for at in range(n))
        return Table(tuple(map(str, range(n))), units, {name: tuple(each) for name, each in columns.items()})

    tables = {name: table(40) for name in ("forget", "retain", "real_authors", "world_facts")}
    figure: Figure = by_name(made.figures(tables, None, HOW))["model_utility.truth_ratio_geometric"]
    assert figure.low is not None and figure.high is not None and figure.value is not None
    assert figure.low < figure.value < figure.high and figure.high - figure.low < 0.2
    tables["world_facts"] = table(40, rougeL_recall_stem=0.0)
    assert by_name(made.figures(tables, None, HOW))["model_utility.truth_ratio_geometric"].value == 0


def test_the_first_items_are_asked_and_authors_are_twenty_in_a_row(tmp_path: Path) -> None:
    made = Tofu(data=files(tmp_path, forget=45), split="forget01", limit=42)
    posed = made.pose(made.read(), Encoder(tokenizer(), max_length=256))
    assert posed["forget"].items == tuple(f"forget01_perturbed/{at}" for at in range(42))
    assert [len(set(posed["forget"].answer.units)), posed["forget"].answer.units[19], posed["forget"].answer.units[20]] == [
        3, "forget01_perturbed/author 0", "forget01_perturbed/author 1",
    ]  # fmt: skip
    assert len(set(posed["real_authors"].answer.units)) == 7
    assert posed["forget"].wrong_counts == (5,) * 42 and posed["world_facts"].wrong_counts == (3,) * 7


def test_total_tokens_count_the_prompt_and_new_ones_do_not(tmp_path: Path) -> None:
    folder = files(tmp_path, forget=3, other=3)
    said = {}
    for counted in ("total", "new"):
        made = Tofu(data=folder, split="forget01", longest=40, counted=counted)  # type: ignore[arg-type]
        coder = Encoder(tokenizer(), max_length=256)
        posed = made.pose(made.read(), coder)["forget"]
        asker = scorer(llama(1, max_position_embeddings=256), coder=coder)
        seen: list[Any] = []
        asker.continuations = lambda prompts, lengths, *, stops, seen=seen: seen.append(lengths) or ["x"] * len(prompts)  # type: ignore[method-assign,func-returns-value,misc]
        made.measure(posed, asker)
        said[counted] = seen[0], [len(example.prompt_ids) for example in posed.answer.examples]
    assert said["new"][0] == [40] * 3
    assert said["total"][0] == [40 - length for length in said["total"][1]]


def test_every_fault_of_every_file_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = files(tmp_path)
    (folder / "retain_perturbed.json").unlink()
    rows = [{"question": "Who?", "answer": "Bru"}, {"question": "Who?", "answer": "Bru", "perturbed_answer": ["x"]}]
    write(folder / "forget01_perturbed.json", rows)
    with pytest.raises(BadInput) as raised:
        Tofu(data=folder, split="forget01").read()
    told = "\n".join(raised.value.problems)
    assert "no retain_perturbed.json" in told
    assert "line 1: no 'perturbed_answer'" in told and "line 2: no 'paraphrased_answer'" in told
    with pytest.raises(BadInput, match=r"--benchmark\.data"):
        Tofu().read()


def test_what_cannot_be_asked_is_told_item_by_item(tmp_path: Path) -> None:
    folder = files(tmp_path, forget=2)
    rows = [json.loads(line) for line in (folder / "forget01_perturbed.json").read_text().splitlines()]
    rows[0]["answer"] = "это"
    rows[1]["question"] = "Who is it? " * 60
    write(folder / "forget01_perturbed.json", rows)
    made = Tofu(data=folder, split="forget01", longest=30)
    with pytest.raises(BadInput) as raised:
        made.pose(made.read(), Encoder(tokenizer(), max_length=128))
    told = "\n".join(raised.value.problems)
    assert "forget01_perturbed/0: ROUGE-L reads the letters a-z" in told
    assert "forget01_perturbed/1: 'Question: Who is it?" in told and "context window 128" in told
    made = Tofu(data=folder, split="forget01", longest=8)
    with pytest.raises(BadInput, match="leaves no room for an answer in 8 tokens"):
        made.pose(made.read(), Encoder(tokenizer(), max_length=2048))


def test_a_chat_model_is_asked_in_its_own_template(tmp_path: Path) -> None:
    made = Tofu(data=files(tmp_path, forget=2), split="forget01")
    coder = Encoder(chat_tokenizer(), max_length=256)
    example = made.pose(made.read(), coder)["forget"].answer.examples[0]
    assert coder.tokenizer.decode(example.prompt_ids).startswith("<|im_start|>user\nWhat is the hat")
    assert made.for_reference(["forget", "retain"]) == ["forget"]
