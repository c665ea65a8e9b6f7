"""MUSE: verbatim memory, knowledge, privacy and utility of a corpus that was to be forgotten: four numbers a model.

    verbmem    ROUGE-L F of the greedy continuation (128 tokens) of a forgotten text's beginning against its first 128
               tokens, the beginning-of-text token among them where the tokenizer adds one: 127 of the text then
    knowmem    ROUGE-L F of the greedy answer (32 tokens, cut at the next question) behind 10 answered questions
    utility    the same of retained questions
    privleak   100 (A - A_ref) / A_ref, where s(x) = -(mean of the lowest 40 % of a text's token log-probabilities),
               A = P(s(holdout) < s(forget)) + ties/2, and A_ref that of a retrained model
The sign: A is near 0 for a model that has memorised, so -100 is memorised, 0 like retrained, well above 0 unlearned too
far. A conventional AUC is 1 - A. Published retrained models: A = 0.4772 (News), 0.5393 (Books).
Every ROUGE stands here twice: as MUSE has it, and with the stemmer (and whole references) as open-unlearning has it.

Source: MUSE, arXiv:2407.06460, and its code.
Checked against: a slow second implementation of each number, both ends of PrivLeak, re-encoding every prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from letheon.audits.asked import Asked
from letheon.audits.itemized import (
    Better,
    Figure,
    Measured,
    Resampling,
    Table,
    Tables,
    auc_figure,
    mean_figure,
    not_measured,
)
from letheon.audits.published import Rows, find, read_rows
from letheon.audits.scorer import Scorer
from letheon.audits.shared_prefix import continuations
from letheon.data.encode import Encoder, Example
from letheon.data.records import MAX_SHOWN
from letheon.errors import BadInput, NotMeasured, require
from letheon.numerics.scores import auc, min_k, privleak, rouge_l

_FILES = {
    "verbmem": ("verbmem", "forget"),
    "knowmem": ("knowmem", "forget_qa"),
    "knowmem_shown": ("knowmem", "forget_qa_icl"),
    "utility": ("knowmem", "retain_qa"),
    "utility_shown": ("knowmem", "retain_qa_icl"),
    "privleak_forget": ("privleak", "forget"),
    "privleak_holdout": ("privleak", "holdout"),
}
"""Set -> folder and file, as published."""
_ENDS = ("\n\n", "\nQuestion", "Question:")
"""Where MUSE cuts an answer."""


@dataclass(frozen=True, kw_only=True)
class Muse:
    """Settings of the benchmark."""

    data: Path | None = None
    """A folder with the published verbmem/forget, knowmem/{forget_qa,forget_qa_icl,retain_qa,retain_qa_icl} and
    privleak/{forget,holdout}, each .json or .jsonl."""
    verbatim_tokens: int = 128
    """Tokens of a continuation and of its reference."""
    answer_tokens: int = 32
    """Most tokens of an answer."""
    shown: int = 10
    """Answered questions before each question."""
    share: float = 0.4
    """K of Min-K: the share of a text's tokens that counts, above 0 and at most 1."""
    privleak_reference: float | None = None
    """A of the retrained model, above 0 and at most 1, where neither it nor its log is at hand: 0.5 for a model that
    cannot tell the sets apart, or a published one. null: PrivLeak needs --reference."""

    of_figures: ClassVar[tuple[str, ...]] = ("privleak_reference",)
    """Settings that change no answer of a model, so that a log with another value can be a reference."""

    def __post_init__(self) -> None:
        for name in ("verbatim_tokens", "answer_tokens", "shown"):
            require(getattr(self, name) >= 1, f"{name} must be 1 or more, got {getattr(self, name)}")
        require(0 < self.share <= 1, f"share must be above 0 and at most 1, got {self.share}")
        given = self.privleak_reference
        require(given is None or 0 < given <= 1, f"privleak_reference must be above 0 and at most 1, got {given}")

    def read(self) -> dict[str, Rows]:
        """All files. Raises BadInput with every fault of every file."""
        if self.data is None:
            raise BadInput("muse needs the folder of its published files: --benchmark.data DIR")
        found: dict[str, Rows] = {}
        problems: list[str] = []
        for name, (folder, stem) in _FILES.items():
            fields: dict[str, Any] = {"question": "text", "answer": "text"}
            if folder != "knowmem":
                fields = {"prompt": "text", "gt": "text"} if folder == "verbmem" else {"text": "text"}
            try:
                rows = read_rows(find(self.data / folder, stem, what="MUSE data"), fields)
                found[name] = Rows(f"{folder}/{rows.name}", rows.path, rows.rows)
                if name.endswith("_shown") and len(rows.rows) < self.shown:
                    problems.append(
                        f"{rows.path}: holds {len(rows.rows)} answered questions, and {self.shown} are shown before "
                        "each question. Give the published file, or a smaller --benchmark.shown"
                    )
            except BadInput as error:
                problems += error.problems
        if problems:
            raise BadInput(problems)
        known = {row["text"] for row in found["privleak_forget"].rows}
        shared = sum(row["text"] in known for row in found["privleak_holdout"].rows)
        require(
            not shared,
            f"{found['privleak_holdout'].path}: {shared} of its texts are forget texts too; it must hold strangers",
        )
        return found

    def pose(self, rows: Mapping[str, Rows], encoder: Encoder) -> dict[str, _Posed]:
        """Every set as tokens, without any template. Raises BadInput with all that does not fit the window."""
        plain = Encoder(encoder.tokenizer, max_length=encoder.max_length, template="plain")
        posed: dict[str, _Posed] = {}
        problems: list[str] = []
        for name in ("verbmem", "knowmem", "utility", "privleak_forget", "privleak_holdout"):
            file = rows[name]
            prompts, answers, room = self._texts(name, rows)
            ids = [tuple(plain.prompt_ids(prompt)) for prompt in prompts]
            for position, each in enumerate(ids):
                place = f"{file.path}, {file.item(position)}"
                if len(each) + room > encoder.max_length:
                    problems.append(
                        f"{place}: {len(each)} tokens and {room} to be said are more than the context window of "
                        f"{encoder.max_length}. Nothing is cut here: use a model with a longer window"
                    )
                elif not room and len(each) < 2:
                    problems.append(f"{place}: is one token, and the first of a text is not scored")
                elif room and not _has_words(answers[position]):
                    problems.append(f"{place}: its answer has no word of a-z or 0-9, which is all that ROUGE-L reads")
            items = tuple(file.item(position) for position in range(len(prompts)))
            posed[name] = _Posed(name, items, tuple(prompts), tuple(answers), tuple(ids))
        if problems:
            hidden = len(problems) - MAX_SHOWN
            raise BadInput(problems[:MAX_SHOWN] + ([f"and {hidden} more"] if hidden > 0 else []))
        return posed

    def _texts(self, name: str, rows: Mapping[str, Rows]) -> tuple[list[str], list[str], int]:
        """Prompts, true answers, and the tokens that are to be said."""
        given = rows[name].rows
        if name == "verbmem":
            return [row["prompt"] for row in given], [row["gt"] for row in given], self.verbatim_tokens
        if name.startswith("privleak"):
            return [row["text"] for row in given], [""] * len(given), 0
        before = answered_before(rows[f"{name}_shown"].rows[: self.shown])
        prompts = [f"{before}Question: {row['question']}\nAnswer: " for row in given]
        return prompts, [row["answer"] for row in given], self.answer_tokens

    def measure(self, posed: _Posed, scorer: Scorer) -> Measured:
        """One set. Raises NotMeasured: a log-probability or logit that is no number."""
        if posed.name.startswith("privleak"):
            examples = tuple(Example(ids, 1) for ids in posed.ids)
            asked = Asked(posed.name, posed.items, posed.items, posed.prompts, posed.answers, examples)
            familiarity = [min_k(values, self.share) for values in scorer.scores(asked).token_log_probs]
            lengths = tuple(float(len(ids)) for ids in posed.ids)
            return Measured(Table(posed.items, posed.items, {"min_k": tuple(familiarity), "tokens": lengths}))
        if posed.name == "verbmem":
            said = scorer.continuations(posed.ids, [self.verbatim_tokens] * len(posed.ids))
            truth = [first_tokens(scorer.encoder.tokenizer, text, self.verbatim_tokens) for text in posed.answers]
        else:
            said = [cut_answer(text) for text in continuations(scorer, posed.ids, self.answer_tokens)]
            truth = list(posed.answers)
        columns = {
            "rougeL_f1.nostem": [rouge_l(true, text).f for true, text in zip(truth, said, strict=True)],
            "rougeL_f1.stem.whole_reference": [
                rouge_l(true, text, use_stemmer=True).f for true, text in zip(posed.answers, said, strict=True)
            ],
        }
        table = Table(posed.items, posed.items, {name: tuple(values) for name, values in columns.items()})
        # What was shown before each question is the same for all of them.
        shown = [prompt if posed.name == "verbmem" else _last_question(prompt) for prompt in posed.prompts]
        spoken = zip(posed.items, shown, posed.answers, said, strict=True)
        return Measured(table, tuple({"item": i, "prompt": q, "answer": a, "said": s} for i, q, a, s in spoken))

    def for_reference(self, sets: Sequence[str]) -> list[str]:
        """The sets that a retrained model is asked as well."""
        return [name for name in sets if name.startswith("privleak")]

    def figures(self, tables: Tables, reference: Tables | None, how: Resampling) -> list[Figure]:
        """Every figure, from the tables alone."""
        found: list[Figure] = []
        for name in ("verbmem", "knowmem", "utility"):
            better: Better = "high" if name == "utility" else "low"
            for column in tables[name].columns:
                note = "as MUSE" if column == "rougeL_f1.nostem" else "as open-unlearning"
                values = tables[name].column(column)
                found.append(mean_figure(f"{name}.{column}", tables[name], values, how, better=better, note=note))
        return [*found, *self._privleak(tables, reference, how)]

    def _privleak(self, tables: Tables, reference: Tables | None, how: Resampling) -> list[Figure]:
        name = f"privleak.min_k_{100 * self.share:g}"
        forget, holdout = tables["privleak_forget"], tables["privleak_holdout"]
        members, others = (forget.column("min_k"), forget.units), (holdout.column("min_k"), holdout.units)
        familiar = auc(members[0], others[0])
        unlike = _lengths(forget.column("tokens"), holdout.column("tokens"))
        note = f"P(s(holdout) < s(forget)) + ties/2{unlike}"
        a = auc_figure(f"{name}.A", members, others, 1 - familiar, how, is_turned=True, note=note)
        turned = auc_figure(f"{name}.auc", members, others, familiar, how, note="1 - A: 1 is memorised")
        return [self._against_reference(name, a, reference), a, turned]

    def _against_reference(self, name: str, a: Figure, reference: Tables | None) -> Figure:
        """PrivLeak itself; a retrained model that is at hand goes before a number that was given."""
        if reference is not None:
            theirs = auc(reference["privleak_forget"].column("min_k"), reference["privleak_holdout"].column("min_k"))
            given, said = 1 - theirs, "of the reference"
        elif self.privleak_reference is not None:
            given, said = self.privleak_reference, "as given, not measured"
        else:
            return not_measured(
                name,
                "needs a model trained without the forget set (letheon train) or its benchmark.json: --reference PATH. "
                "--benchmark.privleak-reference 0.5 stands for one that cannot tell the sets apart",
                n=a.n,
            )
        try:
            value, low, high = (None if part is None else privleak(part, given) for part in (a.value, a.low, a.high))
        except NotMeasured as reason:
            return not_measured(name, str(reason), n=a.n)
        note = f"percent; A_ref {given:.4f} ({said}), held fixed in the interval"
        return Figure(name, value, low, high, a.n, "reference", note)


@dataclass(frozen=True)
class _Posed:
    """One set as tokens."""

    name: str
    items: tuple[str, ...]
    prompts: tuple[str, ...]
    """Or whole texts, of which nothing is said."""
    answers: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]

    def tokens(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """All that is asked, as (tokens, where the labelled ones begin)."""
        return ((ids, 1) for ids in self.ids)


def answered_before(rows: Sequence[Mapping[str, str]]) -> str:
    """The answered questions that stand before each question.

    >>> answered_before([{"question": "Q?", "answer": "a"}])
    'Question: Q?\\nAnswer: a\\n\\n'
    """
    return "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in rows)


def cut_answer(text: str) -> str:
    """The text up to the first place where a next question begins.

    >>> cut_answer(" Bru.\\n\\nQuestion: Who?"), cut_answer("\\n\\nBru")
    (' Bru.', '')
    """
    return text[: min((place for end in _ENDS if (place := text.find(end)) >= 0), default=len(text))]


def first_tokens(tokenizer: Any, text: str, count: int) -> str:
    """The text of its first `count` tokens; one of them is the beginning-of-text token where the tokenizer adds it."""
    ids = tokenizer.encode(text, add_special_tokens=True, verbose=False)[:count]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _last_question(prompt: str) -> str:
    return prompt[prompt.rindex("Question: ") :]


def _lengths(members: NDArray[np.float64], others: NDArray[np.float64]) -> str:
    """A warning where the two sets are clearly not of one length; else nothing."""
    difference = members.mean() - others.mean()
    error = float(np.hypot(members.std() / len(members) ** 0.5, others.std() / len(others) ** 0.5))
    if abs(difference) <= max(3 * error, 0.05 * others.mean()):
        return ""
    return (
        f"; the texts' mean lengths are {members.mean():.0f} and {others.mean():.0f} tokens, so it may be the length "
        "that is told apart"
    )


def _has_words(text: str) -> bool:
    try:
        rouge_l(text, "")
    except NotMeasured:
        return False
    return True
