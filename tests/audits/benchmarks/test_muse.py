"""MUSE against slow second implementations of its numbers, its traps, and both ends of PrivLeak."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from letheon.audits.benchmarks.muse import Muse, first_tokens
from letheon.audits.itemized import Resampling, Table
from letheon.data.encode import Encoder
from letheon.errors import BadInput
from tests.audits.benchmarks.data import WORDS, by_name, muse_files, scorer, taught, write
from tests.audits.fakes import uniform_model
from tests.audits.mini import Mini
from tests.toys import bos_tokenizer, llama, tokenizer

HOW = Resampling(resamples=1000)
WINDOW = 512


def coder() -> Encoder:
    return Encoder(tokenizer(), max_length=WINDOW)


@cache
def lively() -> Any:
    """Has seen some of it, so that no ROUGE is 0, and not all, so that none is 1."""
    texts = [f"One {colour} day the {colour} cat ran" for colour in WORDS[:4]]
    pair = "Question: Hat {} of Ann?\nAnswer: {}\n\n"
    before = "".join(pair.format(at, WORDS[at % 12]) for at in range(4, 14))
    # Behind the prompt's last space a word begins with a space of its own.
    return taught([*texts, *(before + pair.format(at, f" {WORDS[at]}") for at in range(2))])


def measured(made: Muse, model: Any) -> dict[str, Table]:
    asker = scorer(model, coder=coder())
    return {name: made.measure(one, asker).table.rounded() for name, one in made.pose(made.read(), coder()).items()}


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


class Slow:
    """As MUSE's script: one prompt at a time, from its first token."""

    def __init__(self, model: Any) -> None:
        self.model, self.words = model, tokenizer()

    @torch.no_grad()
    def greedy(self, prompt: str, most: int) -> str:
        ids = self.words.encode(prompt)
        start = len(ids)
        while len(ids) < start + most:
            token = int(self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == 1:
                break
            ids.append(token)
        return str(self.words.decode(ids[start:], skip_special_tokens=True))

    def knowmem(self, folder: Path, part: str, stem: bool) -> float:
        shown = "".join(
            f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
            for row in load(folder, f"knowmem/{part}_qa_icl")
        )
        rouge = RougeScorer(["rougeL"], use_stemmer=stem)
        values = []
        for row in load(folder, f"knowmem/{part}_qa"):
            said = self.greedy(f"{shown}Question: {row['question']}\nAnswer: ", 32)
            for end in ("\n\n", "\nQuestion", "Question:"):
                said = said.split(end)[0]
            values.append(rouge.score(row["answer"], said)["rougeL"].fmeasure)
        return float(np.mean(values))

    def verbmem(self, folder: Path, stem: bool, tokens: int) -> float:
        rouge = RougeScorer(["rougeL"], use_stemmer=stem)
        values = []
        for row in load(folder, "verbmem/forget"):
            truth = row["gt"] if stem else self.words.decode(self.words.encode(row["gt"])[:tokens])
            values.append(rouge.score(truth, self.greedy(row["prompt"], tokens))["rougeL"].fmeasure)
        return float(np.mean(values))

    @torch.no_grad()
    def unfamiliar(self, text: str) -> float:
        ids = self.words.encode(text)
        log_probs = torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        each = sorted(float(log_probs[at - 1, ids[at]]) for at in range(1, len(ids)))
        return -float(np.mean(each[: math.floor(0.4 * (len(ids) - 1))]))

    def a(self, folder: Path) -> float:
        forget = [self.unfamiliar(text) for text in load(folder, "privleak/forget")]
        holdout = [self.unfamiliar(text) for text in load(folder, "privleak/holdout")]
        return float(np.mean([(h < f) + 0.5 * (h == f) for h in holdout for f in forget]))


def test_every_number_is_that_of_a_slow_second_implementation(tmp_path: Path) -> None:
    folder, model, slow = muse_files(tmp_path, questions=4), lively(), Slow(lively())
    made = Muse(data=folder, verbatim_tokens=5)
    other = measured(made, llama(2, max_position_embeddings=WINDOW))
    found = by_name(made.figures(measured(made, model), other, HOW))
    both = {"rougeL_f1.nostem": False, "rougeL_f1.stem.whole_reference": True}
    for name, stem in both.items():
        assert found[f"verbmem.{name}"].value == pytest.approx(slow.verbmem(folder, stem, 5), abs=1e-7)
        assert found[f"knowmem.{name}"].value == pytest.approx(slow.knowmem(folder, "forget", stem), abs=1e-7)
        assert found[f"utility.{name}"].value == pytest.approx(slow.knowmem(folder, "retain", stem), abs=1e-7)
    assert 0 < found["verbmem.rougeL_f1.stem.whole_reference"].value < found["verbmem.rougeL_f1.nostem"].value
    assert 0 < found["knowmem.rougeL_f1.nostem"].value < 1
    a, a_ref = slow.a(folder), Slow(llama(2, max_position_embeddings=WINDOW)).a(folder)
    assert found["privleak.min_k_40.A"].value == pytest.approx(a)
    assert found["privleak.min_k_40.auc"].value == pytest.approx(1 - a)
    assert found["privleak.min_k_40"].value == pytest.approx(100 * (a - a_ref) / a_ref)
    assert f"A_ref {a_ref:.4f} (of the reference)" in found["privleak.min_k_40"].note


def table(values: list[float], tokens: float = 30.0) -> Table:
    names = tuple(f"i/{at}" for at in range(len(values)))
    return Table(names, names, {"min_k": tuple(values), "tokens": (tokens,) * len(values)})


def rouges() -> dict[str, Table]:
    names = ("a", "b", "c")
    columns = {"rougeL_f1.nostem": (0.1, 0.2, 0.3), "rougeL_f1.stem.whole_reference": (0.1, 0.2, 0.3)}
    return {name: Table(names, names, columns) for name in ("verbmem", "knowmem", "utility")}


def privacy(forget: list[float], holdout: list[float], **settings: Any) -> dict[str, Any]:
    """Familiarity of both sets (Min-K log-probabilities, higher is more familiar), against a reference."""
    reference = settings.pop("reference", None)
    if reference is not None:
        reference = {"privleak_forget": table(reference[0]), "privleak_holdout": table(reference[1])}
    tables = {**rouges(), "privleak_forget": table(forget), "privleak_holdout": table(holdout)}
    return by_name(Muse(**settings).figures(tables, reference, HOW))


KNOWN, NEVER, MIXED = [-0.1, -0.2, -0.3, -0.4], [-3.0, -3.1, -3.2, -3.3], [-3.05, -3.15, -3.25, -2.9]


def test_the_sign_of_privleak() -> None:
    """-100 memorised, 0 like the reference, positive unlearned too far."""
    reference = (MIXED, NEVER)
    memorised = privacy(KNOWN, NEVER, reference=reference)
    assert (memorised["privleak.min_k_40"].value, memorised["privleak.min_k_40.A"].value) == (-100, 0)
    assert memorised["privleak.min_k_40.auc"].value == 1
    assert privacy(*reference, reference=reference)["privleak.min_k_40"].value == 0
    too_far = privacy([-9.0, -9.1, -9.2, -9.3], NEVER, reference=reference)
    assert too_far["privleak.min_k_40.A"].value == 1 and too_far["privleak.min_k_40"].value > 0


def test_without_a_reference_privleak_is_refused_unless_a_number_is_asked_for() -> None:
    refused = privacy(KNOWN, NEVER)["privleak.min_k_40"]
    assert refused.value is None and "--reference PATH" in refused.note and "letheon train" in refused.note
    given = privacy(MIXED, NEVER, privleak_reference=0.5)["privleak.min_k_40"]
    assert "A_ref 0.5000 (as given, not measured)" in given.note and given.value is not None
    own = privacy(MIXED, NEVER, privleak_reference=0.5, reference=(MIXED, NEVER))["privleak.min_k_40"]
    assert own.value == 0 and "of the reference" in own.note
    knows = privacy(MIXED, NEVER, reference=(KNOWN, NEVER))["privleak.min_k_40"]
    assert knows.value is None and "itself knows the forget set" in knows.note


def test_texts_of_unlike_length_are_told() -> None:
    tables = {**rouges(), "privleak_forget": table(MIXED, 50), "privleak_holdout": table(NEVER, 30)}
    note = by_name(Muse().figures(tables, None, HOW))["privleak.min_k_40.A"].note
    assert "mean lengths are 50 and 30 tokens" in note
    assert "lengths" not in privacy(MIXED, NEVER)["privleak.min_k_40.A"].note


def test_a_uniform_model_cannot_tell_anything_apart(tmp_path: Path) -> None:
    made = Muse(data=muse_files(tmp_path, questions=2), privleak_reference=0.5)
    model = uniform_model()
    tables = measured(made, model)
    assert tables["privleak_forget"].columns["min_k"] == pytest.approx([-math.log(768)] * 5, rel=1e-6)
    found = by_name(made.figures(tables, None, HOW))
    assert found["privleak.min_k_40.A"].value == 0.5 and found["privleak.min_k_40"].value == 0


def test_the_reference_of_verbmem_counts_the_beginning_where_the_tokenizer_adds_it() -> None:
    from tokenizers.processors import TemplateProcessing

    text = "the old cat ran home over the hill by the mill"
    plain = tokenizer()
    ids = plain.encode(text)
    assert first_tokens(plain, text, 6) == plain.decode(ids[:6])
    adds = bos_tokenizer()
    assert first_tokens(adds, text, 6) == plain.decode(ids[:6]), "a token that is not added is not counted"
    adds._tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", adds.bos_token_id)]
    )
    assert first_tokens(adds, text, 6) == plain.decode(ids[:5])


def test_prompts_and_texts_are_as_published(tmp_path: Path) -> None:
    """Ten answered questions of the same split, a trailing space, no end of text anywhere, first token not scored."""
    made = Muse(data=muse_files(tmp_path))
    posed = made.pose(made.read(), coder())
    know = posed["knowmem"]
    assert know.prompts[0].count("Question: ") == 11 and know.prompts[0].endswith("Question: Hat 0 of Ann?\nAnswer: ")
    assert "Bo" not in know.prompts[0] and "Ann" not in posed["utility"].prompts[0]
    assert coder().tokenizer.decode(know.ids[0]) == know.prompts[0]
    for name in ("verbmem", "privleak_holdout"):
        assert all(coder().eos not in ids for ids in posed[name].ids)
    with_bos = Encoder(bos_tokenizer(), max_length=WINDOW)
    first = made.pose(made.read(), with_bos)["privleak_forget"].ids[0]
    assert first[0] == with_bos.bos and first[1:] == posed["privleak_forget"].ids[0]
    assert posed["knowmem"].items[0] == "knowmem/forget_qa/0"


def test_lines_do_as_well_as_an_array(tmp_path: Path) -> None:
    one, two = (Muse(data=muse_files(tmp_path / name, as_array=name == "a")) for name in "ab")
    assert one.pose(one.read(), coder())["privleak_forget"] == two.pose(two.read(), coder())["privleak_forget"]


def test_every_fault_is_told(tmp_path: Path) -> None:
    folder = muse_files(tmp_path)
    (folder / "privleak" / "holdout.json").unlink()
    write(folder / "knowmem/forget_qa_icl.json", [{"question": "Who?", "answer": "Bru"}])
    write(folder / "verbmem/forget.json", [{"prompt": "One"}])
    with pytest.raises(BadInput) as raised:
        Muse(data=folder).read()
    told = "\n".join(raised.value.problems)
    assert "no holdout.json" in told and "no 'gt' field" in told and "holds 1 answered questions, and 10" in told
    with pytest.raises(BadInput, match=r"--benchmark\.data DIR"):
        Muse().read()
    made = Muse(data=muse_files(tmp_path / "again"))
    texts = load(tmp_path / "again", "privleak/forget")
    write(tmp_path / "again" / "privleak/holdout.json", [*texts[:2], "Cem went home."])
    with pytest.raises(BadInput, match="2 of its texts are forget texts too"):
        made.read()


def test_what_does_not_fit_the_window_is_refused_and_never_cut(tmp_path: Path) -> None:
    made = Muse(data=muse_files(tmp_path, questions=1))
    with pytest.raises(BadInput) as raised:
        made.pose(made.read(), Encoder(tokenizer(), max_length=135))
    told = "\n".join(raised.value.problems)
    assert "knowmem/forget_qa/0" in told and "knowmem/retain_qa/0" in told and "and 32 to be said" in told
    assert "verbmem" not in told.replace("verbmem/forget/", "") or "128 to be said" in told


def test_only_privacy_is_asked_of_the_reference() -> None:
    assert Muse().for_reference(["verbmem", "privleak_forget", "privleak_holdout"]) == [
        "privleak_forget",
        "privleak_holdout",
    ]


def test_a_trained_model_and_one_that_never_saw_the_people(mini: Mini, tmp_path: Path) -> None:
    """The embedded world in MUSE's form: memorised is near -100, the reference is 0, utility is kept by both."""
    for role, place in (("forget", "forget"), ("holdout", "holdout")):
        texts = [one.text for one in mini.data(role).texts]
        write(tmp_path / f"privleak/{place}.json", texts, as_array=True)
    halves = [one.text.split() for one in mini.data("forget").texts]
    verbatim = [{"prompt": " ".join(words[:8]), "gt": " ".join(words[8:])} for words in halves]
    write(tmp_path / "verbmem/forget.json", verbatim)
    for role in ("forget", "retain"):
        pairs = [{"question": one.prompt, "answer": one.answer} for one in mini.data(role).questions]
        write(tmp_path / f"knowmem/{role}_qa.json", pairs[2:10])
        write(tmp_path / f"knowmem/{role}_qa_icl.json", pairs[:2])
    made = Muse(data=tmp_path, shown=1, verbatim_tokens=24, answer_tokens=8)
    plain = Encoder(mini.encoder.tokenizer, max_length=128)
    tables = {}
    for name, folder in (("target", mini.target), ("reference", mini.reference)):
        asker = scorer(mini.load(folder), coder=plain)
        tables[name] = {key: made.measure(one, asker).table for key, one in made.pose(made.read(), plain).items()}
    target, reference = (by_name(made.figures(tables[name], tables["reference"], HOW)) for name in tables)
    assert target["privleak.min_k_40"].value < -80 and reference["privleak.min_k_40"].value == 0
    assert 0.1 < reference["privleak.min_k_40.A"].value < 0.9
    name = "verbmem.rougeL_f1.nostem"
    assert target[name].value > reference[name].value + 0.1
