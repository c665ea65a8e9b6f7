"""letheon's questions as tasks of lm-evaluation-harness: the same tokens, the same numbers, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from letheon.audits.harness.pairs import as_pair, as_prompt, encode_pair, encode_prompt, encode_text, fingerprint
from letheon.audits.harness.plugin import check, requests_of, rows_of
from letheon.audits.harness.scores import item_scores
from letheon.audits.harness.tasks import GREEDY, write_tasks
from letheon.audits.itemized import Resampling
from letheon.audits.question_forms import question
from letheon.data.batches import collate
from letheon.data.encode import Encoder, Example
from letheon.data.records import Record
from letheon.errors import BadInput, NotMeasured
from letheon.methods import build
from letheon.tiny.world import SMALL, write_world
from tests.audits.benchmarks.data import by_name, model_folder, muse_files, scorer, tofu_files, tofu_rows
from tests.toys import bos_tokenizer, chat_tokenizer, llama, tokenizer

HOW = Resampling(resamples=1000)
TOKENIZERS = {"plain": tokenizer, "bos": bos_tokenizer, "chat": chat_tokenizer}


def config_of(path: Path) -> Any:
    """A task's YAML, with what lm_eval would import as its text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


def written(out: Path, name: str, model: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The metadata that lm_eval hands to a task, and its rows."""
    metadata = {**config_of(out / f"{name}.yaml")["metadata"], "config_source": str(out / f"{name}.yaml")}
    return {**metadata, "pretrained": str(model)}, rows_of(metadata)


# --- texts that become the same tokens


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_question_becomes_the_tokens_that_letheon_asks(kind: str) -> None:
    coder = Encoder(TOKENIZERS[kind](), max_length=128)
    forms = ("chat",) if kind == "chat" else ("base", "plain", "llama2", "phi")
    for form in forms:
        example = question(coder, form, "Who wrote it?", "Ann Bo did.")
        pair = as_pair(coder.tokenizer, example)
        before, after = encode_pair(coder.tokenizer, pair.context, pair.continuation)
        assert (*before, *after) == example.ids and pair.tokens == len(example.answer_ids)
        assert pair.space == ("\n" if form in ("chat", "phi") else "")
        # What stands before the answer is the context and the space, which is asked by itself.
        spaced = encode_pair(coder.tokenizer, pair.context.rstrip(), pair.space)[1] if pair.space else []
        assert (*before, *spaced) == example.prompt_ids and after[len(spaced) :] == list(example.answer_ids)
        assert encode_prompt(coder.tokenizer, as_prompt(coder.tokenizer, example.prompt_ids)) == list(
            example.prompt_ids
        )


def test_other_tokens_are_refused() -> None:
    """Where a tokenizer joins prompt and answer, letheon encodes them apart and lm-evaluation-harness does not."""
    coder = tokenizer()
    apart = [*coder.encode("What is t"), *coder.encode("he hat")]
    assert apart != coder.encode("What is the hat")
    with pytest.raises(BadInput, match="becomes other tokens in lm-evaluation-harness"):
        as_pair(coder, Example(tuple(apart), len(coder.encode("What is t"))))
    with pytest.raises(BadInput, match="becomes other tokens in lm-evaluation-harness"):
        as_prompt(coder, apart)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_rules_are_lm_evals_own(kind: str) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    coder = TOKENIZERS[kind]()
    first = coder.bos_token_id if coder.bos_token_id is not None else coder.eos_token_id
    ids = coder.encode("Who?", add_special_tokens=False)
    assert encode_pair(coder, "", "Who?") == encode_pair(coder, "", coder.decode([first]) + "Who?") == ([first], ids)
    for add_bos in (None, False, True):
        model = HFLM(pretrained=llama(3, vocab_size=len(coder)), tokenizer=coder, add_bos_token=add_bos)
        for context, rest in (("Who?", " Ann"), ("<bos>Who?\n", "Ann<eos>"), ("Who:  ", "Ann"), ("<eos>a", "b")):
            assert encode_pair(coder, context, rest, add_bos=add_bos) == model._encode_pair(context, rest)
            assert encode_text(coder, context, add_bos=add_bos) == model.tok_encode(context)
            assert encode_prompt(coder, context, add_bos=add_bos) == model.tok_batch_encode([context])[0][0].tolist()


# --- without lm_eval: what is written, and what a model of ours says to it


class Asked:
    """Answers requests as HFLM does, one after the other."""

    def __init__(self, model: Any, coder: Any) -> None:
        self.asker, self.tokenizer = scorer(model, coder=Encoder(coder, max_length=512)), coder

    def results(self, doc: Mapping[str, Any], ends: list[int]) -> list[Any]:
        return [getattr(self, f"_{kind}")(*arguments) for kind, arguments in requests_of(doc, ends)]

    def _loglikelihood(self, context: str, rest: str) -> tuple[float, bool]:
        before, after = encode_pair(self.tokenizer, context, rest)
        with torch.no_grad():
            logits = self.asker.model(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1].double()
        chosen = torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after)]
        return float(chosen.sum()), logits.argmax(-1).tolist() == after

    def _generate_until(self, context: str, how: Mapping[str, Any]) -> str:
        ids = encode_prompt(self.tokenizer, context)
        (said,) = self.asker.continued_ids([ids], [how["max_gen_toks"]], stops=how["eos_token_id"])
        return str(self.tokenizer.decode(said, skip_special_tokens=True))


def knowing(coder: Any, examples: list[Example]) -> Any:
    """A small model that has learned these answers a little."""
    model = llama(7, vocab_size=len(coder), max_position_embeddings=512)
    batch = collate(examples, range(len(examples)), pad=0)
    labels = batch.ids.masked_fill(batch.attention_mask == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(input_ids=batch.ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def means(out: Path, names: tuple[str, ...], asked: Asked, model: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in names:
        metadata, docs = written(out, name, model)
        each = [item_scores(doc, asked.results(doc, metadata["letheon"]["ends"])) for doc in docs]
        assert set(each[0]) == {one["metric"] for one in config_of(out / f"{name}.yaml")["metric_list"]}
        found |= {f"{name}.{metric}": sum(one[metric] for one in each) / len(each) for metric in each[0]}
    return found


def figures(spec: dict[str, Any], model: Any, coder: Any) -> dict[str, Any]:
    made = build("benchmark", spec)
    posed = made.pose(made.read(), Encoder(coder, max_length=512))
    asker = scorer(model, coder=Encoder(coder, max_length=512))
    return by_name(made.figures({name: made.measure(one, asker).table for name, one in posed.items()}, None, HOW))


def given(tmp_path: Path, benchmark: str, form: str = "plain") -> dict[str, Any]:
    if benchmark == "tofu":
        data = tofu_files(tmp_path / "tofu", forget=6, other=6)
        return {"name": "tofu", "data": data, "split": "forget01", "longest": 40, "counted": "new", "form": form}
    if benchmark == "muse":
        return {"name": "muse", "data": muse_files(tmp_path / "muse", questions=3), "verbatim_tokens": 12}
    write_world(tmp_path / "world", 0, SMALL)
    return {"name": "people", "data": tmp_path / "world", "limit": 12}


CASES = [
    ("tofu", "plain"),
    ("tofu", "bos"),
    ("muse", "plain"),
    ("people", "plain"),
    ("tofu", "chat"),
    ("people", "chat"),
]


class Made:
    """A model, its folder, and the tasks that were written for it."""

    def __init__(self, root: Path, benchmark: str, kind: str) -> None:
        self.benchmark, self.root = benchmark, root
        self.spec, self.model, self.coder, self.folder, self.result = _made(root, benchmark, kind)
        self.ours = figures(self.spec, self.model, self.coder)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("-".join(request.param)), *request.param)


def _made(tmp_path: Path, benchmark: str, kind: str) -> tuple[dict[str, Any], Any, Any, Path, Any]:
    coder = TOKENIZERS[kind]()
    spec = given(tmp_path, benchmark, "chat" if kind == "chat" else "plain")
    encoder = Encoder(coder, max_length=512)
    rows = tofu_rows("Ann", 4, wrong=1, is_paraphrased=False)
    if benchmark == "muse":
        texts = ("One red day the red cat ran home over the mill", "Question: Hat 0 of Ann?\nAnswer: red\n\n")
        examples = [encoder.encode(Record(line=1, unit="", fact="", text=text)) for text in texts]
    else:
        form = "chat" if kind == "chat" else "plain"
        examples = [question(encoder, form, row["question"], row["answer"]) for row in rows]
    told = knowing(coder, examples)
    folder = model_folder(tmp_path / "m", model=told)
    coder.save_pretrained(folder)
    return spec, told, coder, folder, write_tasks(folder, spec, tmp_path / "tasks")


def in_our_words(name: str, metric: str) -> str:
    """letheon_tofu_forget01, probability -> forget.probability"""
    return f"{name.split('_', 2)[2].replace('forget01', 'forget')}.{metric}"


def test_every_number_is_that_of_letheon_benchmark(made: Made) -> None:
    theirs = means(made.root / "tasks", made.result.tasks, Asked(made.model, made.coder), made.folder)
    for name, value in theirs.items():
        task, metric = name.split(".", 1)
        is_exact = metric.startswith("rouge") or metric in ("accuracy", "choice")
        assert value == pytest.approx(made.ours[in_our_words(task, metric)].value, abs=1e-9 if is_exact else 1e-6), name
    assert any(0 < value < 1 for value in theirs.values())
    # Whatever else letheon benchmark says is named as left out.
    missing = set(made.ours) - {in_our_words(*name.split(".", 1)) for name in theirs}
    told = " ".join(made.result.left_out)
    assert all(name.split(".")[0] in told or name.split(".")[-1] in told for name in missing), missing


def test_lm_eval_prints_what_letheon_benchmark_prints(made: Made) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = str(made.root / "tasks")
    found = simple_evaluate(
        model=HFLM(pretrained=made.model, tokenizer=made.coder, batch_size=4),
        tasks=[f"letheon_{made.benchmark}"],
        task_manager=TaskManager(include_path=tasks, include_defaults=False, metadata={"pretrained": str(made.folder)}),
        bootstrap_iters=0,
    )["results"]
    assert set(found) == set(made.result.tasks)
    compared = 0
    for task, metrics in found.items():
        for name, value in metrics.items():
            metric, _, filtered = name.partition(",")
            if filtered == "none" and not metric.endswith("_stderr"):
                is_exact = metric.startswith("rouge") or metric in ("accuracy", "choice")
                ours = made.ours[in_our_words(task, metric)].value
                assert value == pytest.approx(ours, abs=1e-9 if is_exact else 1e-5), (task, metric)
                compared += 1
    assert compared == sum(len(config_of(Path(tasks) / f"{task}.yaml")["metric_list"]) for task in made.result.tasks)


def test_a_chat_template_that_ends_in_space_has_no_accuracy(made: Made) -> None:
    has_space = made.folder.parent.name.startswith("people-chat")
    assert any("accuracy" in told for told in made.result.left_out) == has_space
    if has_space:
        docs = written(made.root / "tasks", "letheon_people_forget", made.folder)[1]
        assert all(doc["space"] == "\n" for doc in docs)
        one = item_scores({**docs[0], "tokens": [4]}, [(-6.0, True), (-2.0, True)])
        assert one == {"probability": pytest.approx(2.718281828 ** (-4.0 / 4))}


def test_a_log_probability_that_is_no_number_is_no_score() -> None:
    doc = {"item": "a/0", "measure": "people.answers", "continuations": [" a"], "tokens": [1], "space": "", "room": 0}
    for wrong in (float("nan"), -float("inf")):
        with pytest.raises(NotMeasured, match="a/0 are not finite"):
            item_scores(doc, [(wrong, False)])


# --- what is refused


@pytest.fixture(scope="module")
def tofu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the model's folder, the tasks')"""
    root = tmp_path_factory.mktemp("tofu")
    folder = model_folder(root / "m")
    write_tasks(folder, given(root, "tofu"), root / "tasks")
    return folder, root / "tasks"


def refusal(tofu: tuple[Path, Path], **changed: Any) -> str:
    metadata, docs = written(tofu[1], "letheon_tofu_forget01", tofu[0])
    given = {name: changed.pop(name) for name in ("apply_chat_template", "system_instruction") if name in changed}
    generation = changed.pop("generation", GREEDY)
    with pytest.raises(BadInput) as raised:
        check({**metadata, **changed}, docs, given, generation)
    return str(raised.value)


def test_what_would_be_another_number_is_refused(tofu: tuple[Path, Path], tmp_path: Path) -> None:
    metadata, docs = written(tofu[1], "letheon_tofu_forget01", tofu[0])
    check(metadata, docs, {"apply_chat_template": False, "system_instruction": None}, dict(GREEDY))
    assert "without --apply_chat_template" in refusal(tofu, apply_chat_template=True)
    assert "--system_instruction" in refusal(tofu, system_instruction="Be kind")
    assert "without --gen_kwargs" in refusal(tofu, generation={**GREEDY, "do_sample": True})
    assert "cannot be seen" in refusal(tofu, pretrained="org/name") and "pretrained=DIR" in refusal(
        tofu, pretrained=None
    )
    assert "the window of" in refusal(tofu, max_length=20)
    assert "prefix_token_id" in refusal(tofu, prefix_token_id=0)
    other = model_folder(tmp_path / "other")
    strange = tokenizer()
    strange.add_tokens([" hat"])
    strange.save_pretrained(other)
    said = refusal(tofu, pretrained=str(other))
    assert "are other tokens" in said and f"letheon harness {other}" in said
    assert "are other tokens" in refusal(tofu, tokenizer=str(other))
    small = model_folder(tmp_path / "small", window=32)
    assert "the window of" in refusal(tofu, pretrained=str(small))


def test_settings_of_generation_in_the_folder_are_not_taken_along(tofu: tuple[Path, Path], tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"min_new_tokens": 5, "temperature": 0.7}))
    assert "sets min_new_tokens" in refusal(tofu, pretrained=str(folder))
    metadata, docs = written(tofu[1], "letheon_tofu_forget01", folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "repetition_penalty": 1.3}))
    check(metadata, docs, {}, GREEDY)
    ((_, how),) = [one[1] for one in requests_of(docs[0], [1]) if one[0] == "generate_until"]
    assert how["repetition_penalty"] == 1.0 and how["num_beams"] == 1 and how["do_sample"] is False


def test_the_beginning_that_a_model_argument_adds_is_seen(tmp_path: Path) -> None:
    """A tokenizer without a beginning of text, whose own rules add something in front."""
    doc = {"context": "Who?", "continuations": [" Ann<eos>"], "space": "", "room": 4}
    plain, begun = tokenizer(), bos_tokenizer()
    begun.add_bos_token = True
    assert fingerprint(plain, [doc]) == fingerprint(plain, [doc], add_bos=False)
    assert fingerprint(begun, [doc]) != fingerprint(plain, [doc])


def test_rows_that_are_gone_or_changed_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    write_tasks(folder, given(tmp_path, "tofu"), tmp_path / "tasks")
    file = tmp_path / "tasks" / "letheon_tofu_forget01.jsonl"
    file.write_text(file.read_text().replace("Ann", "Bob"))
    with pytest.raises(BadInput, match="was changed after it was written"):
        written(tmp_path / "tasks", "letheon_tofu_forget01", folder)
    file.unlink()
    with pytest.raises(BadInput, match="no such file"):
        written(tmp_path / "tasks", "letheon_tofu_forget01", folder)


def test_rows_keep_line_separators_of_any_kind(tmp_path: Path) -> None:
    folder, data = model_folder(tmp_path / "m"), tofu_files(tmp_path / "tofu", forget=2, other=2)
    file = data / "forget01_perturbed.json"
    file.write_text(file.read_text().replace("number 0 of Ann?", "number 0\\u2028of Ann?"))
    write_tasks(folder, {"name": "tofu", "data": data, "split": "forget01", "form": "plain"}, tmp_path / "tasks")
    assert "\u2028" in written(tmp_path / "tasks", "letheon_tofu_forget01", folder)[1][0]["context"]


def test_faults_of_the_writing_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as raised:
        write_tasks(tmp_path / "no", {"name": "tofu", "data": tmp_path}, tmp_path / "tasks")
    told = "\n".join(raised.value.problems)
    assert "MODEL" in told and "no forget10_perturbed.json" in told and "no world_facts_perturbed.json" in told
    with pytest.raises(BadInput, match=r"'tofo' is not a benchmark that can be written as tasks\. Did you mean 'tofu'"):
        write_tasks(tmp_path, "tofo", tmp_path / "tasks")
    with pytest.raises(BadInput, match="lm_eval has WMDP of its own"):
        write_tasks(tmp_path, {"name": "wmdp", "data": tmp_path}, tmp_path / "tasks")
    assert not (tmp_path / "tasks").exists()
