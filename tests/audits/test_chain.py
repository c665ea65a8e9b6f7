"""A model that has forgotten several times: the first original, every request before, and what changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from letheon.audits.audit import AuditResult, audit, check_request
from letheon.audits.known import known_of
from letheon.audits.verdict import Verdict
from letheon.audits.verdict_file import write_verdict
from letheon.audits.verify import verify
from letheon.errors import BadInput
from letheon.quantization.pipeline import quantize
from letheon.runs.folder import sha256_file, sha256_folder
from letheon.runs.ledger import load_record
from letheon.unlearning.forget import forget
from tests.audits.conftest import QUICKLY, QUIET
from tests.audits.mini import Mini, twin
from tests.toys import write_lines

SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "steps": 2, "stop": {"every": 0}, "progress": QUIET}


@dataclass(frozen=True)
class Chain:
    """Three requests, one run each; between the second and the third the model was rounded."""

    root: Path
    target: Path
    files: tuple[Path, Path, Path]

    @property
    def folders(self) -> list[Path]:
        return [self.root / f"run-{number}" / "1-forget" for number in (1, 2, 3)]


def chain_in(root: Path, mini: Mini) -> Chain:
    target = Path(shutil.copytree(mini.target, root / "original"))
    lines = [json.loads(line) for line in mini.files["forget"].read_text().splitlines()]
    units = list(dict.fromkeys(line["unit"] for line in lines))
    people = (units[:3], units[3:4], units[4:])
    files = tuple(
        write_lines(root / f"{number}.jsonl", [line for line in lines if line["unit"] in some])
        for number, some in enumerate(people, start=1)
    )
    model = target
    for number, file in enumerate(files, start=1):
        gate = {"name": "npo", "until": "holdout"} if number == 1 else "npo"
        given = {"retain_data": mini.files["retain"], "holdout_data": mini.files["holdout"], "method": gate}
        model = forget(model, forget_data=file, out=root / f"run-{number}", **given, **SETTINGS).folder
        if number == 2:
            model = quantize(model, method={"name": "rtn", "bits": 8}, format="dense", progress=QUIET).folder
    assert len(files) == 3
    return Chain(root, target, files)


@pytest.fixture(scope="session")
def made(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain_in(tmp_path_factory.mktemp("chain"), mini)


@pytest.fixture(scope="session")
def audited_chain(made: Chain, mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    out = tmp_path_factory.mktemp("audited-chain") / "run"
    model = made.folders[-1]
    return audit(model, reference=mini.reference, general_data=mini.files["general"], out=out, **QUICKLY)


@pytest.fixture
def own(made: Chain, tmp_path: Path) -> Chain:
    """A chain of one's own: everything is copied, and the records say so."""
    root = Path(shutil.copytree(made.root, tmp_path / "chain"))
    for run in root.glob("run-*"):
        record = load_record(run)
        for entry in record.stages:
            for given in entry.inputs.values():
                if given is not None and given["path"].startswith(str(made.root)):
                    given["path"] = str(root / Path(given["path"]).relative_to(made.root))
        record.save(run)
    return Chain(root, root / "original", tuple(root / file.name for file in made.files))  # type: ignore[arg-type]


def refused(model: Path, **given: Any) -> list[str]:
    with pytest.raises(BadInput) as caught:
        check_request({"model": model, **given})
    return caught.value.problems


# --- what is known


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_original_is_the_first_and_every_request_before_is_asked_about(number: int, made: Chain) -> None:
    found = check_request({"model": made.folders[number - 1]})
    assert found.folders["original"].path == made.target
    assert found.data["forget"].path == made.files[number - 1]
    assert [file.path for file in found.earlier] == list(made.files[: number - 1])
    several = [f"{number} requests asked about together, and each alone at 1/{number} of the level"]
    assert list(found.caveats) == (several if number > 1 else [])
    assert found.run == made.folders[number - 1].parent
    assert len(found.gate_units) == 5, "whom the first gate has seen stays known"


def test_a_rounded_model_between_two_requests_is_passed_over(made: Chain) -> None:
    found = check_request({"model": made.root / "run-2" / "2-quantize"})
    assert found.folders["original"].path == made.target
    assert [file.path for file in found.earlier] == [made.files[0]]


def test_the_same_forget_set_again_is_the_same_request(made: Chain, mini: Mini, tmp_path: Path) -> None:
    given = {"retain_data": mini.files["retain"], "out": tmp_path / "again", **SETTINGS}
    again = forget(made.folders[1], forget_data=made.files[0], **given).folder
    assert [one.path for one in known_of(again).earlier] == [made.files[1]]
    twice = forget(made.folders[0], forget_data=made.files[0], **{**given, "out": tmp_path / "twice"}).folder
    assert known_of(twice).earlier == ()


def test_who_names_what_to_ask_about_is_asked_about_that_and_the_scope_says_so(made: Chain) -> None:
    model = made.folders[-1]
    left_out = "2 earlier requests of the same model not asked about"
    assert left_out in check_request({"model": model, "forget_data": made.files[2]}).caveats
    assert left_out in check_request({"model": model, "earlier_data": []}).caveats
    one = check_request({"model": model, "forget_data": made.files[0]})
    assert one.earlier == () and "1 earlier request of the same model not asked about" in one.caveats
    all_named = check_request({"model": model, "earlier_data": list(made.files[:2])})
    assert all_named.caveats == check_request({"model": model}).caveats


# --- what changed


def change(path: Path) -> None:
    """A line less, or a weight more."""
    if path.is_dir():
        shutil.copytree(twin(path, path.parent / "twin"), path, dirs_exist_ok=True)
        shutil.rmtree(path.parent / "twin")
    else:
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def test_an_earlier_forget_set_that_changed_is_refused_by_name(own: Chain) -> None:
    check_request({"model": own.folders[-1]})
    change(own.files[0])
    (told,) = refused(own.folders[-1])
    assert told.startswith(f"earlier forget set {own.files[0]}: is not the one that {own.folders[0]} was made with")
    assert "--earlier" in told
    assert (
        "1 earlier request of the same model not asked about"
        in check_request({"model": own.folders[-1], "earlier_data": [own.files[1]]}).caveats
    )


def test_an_earlier_forget_set_that_is_gone_is_refused_by_name(own: Chain) -> None:
    own.files[1].unlink()
    told = refused(own.folders[-1])
    assert any(
        problem.startswith(f"earlier forget set {own.files[1]}: is not there any more; {own.folders[1]}")
        for problem in told
    )


@pytest.mark.parametrize("name", ["run-1/1-forget", "run-2/2-quantize"])
def test_a_model_between_that_changed_is_refused_by_name(name: str, own: Chain) -> None:
    """What it had forgotten is then not known, and its record does not speak of it."""
    change(own.root / name)
    told = refused(own.folders[-1])
    assert any(problem.startswith(f"{own.root / name}: is not the model that") for problem in told)
    assert all("Restore it" in problem for problem in told)


def test_models_between_may_be_gone(own: Chain) -> None:
    """Their records say what they were."""
    for folder in own.folders[:-1]:
        shutil.rmtree(folder)
    assert [file.path for file in check_request({"model": own.folders[-1]}).earlier] == list(own.files[:2])


def test_the_first_original_that_changed_is_refused_as_ever(own: Chain) -> None:
    change(own.target)
    (told,) = refused(own.folders[-1])
    assert told.startswith(f"original {own.target}: is not the one that {own.folders[-1]} was made with")


# --- the audit


def test_each_request_has_its_own_cells_from_one_round_of_questions(audited_chain: AuditResult, made: Chain) -> None:
    found = audited_chain.audit
    requests = found["requests"]
    assert [one["data"]["path"] for one in requests] == [str(file) for file in made.files]
    assert [one["data"]["sha256"] for one in requests] == [sha256_file(file) for file in made.files]
    assert found["models"]["original"]["sha256"] == sha256_folder(made.target)
    as_is = {"condition": "as_is", "column": "forget_accuracy"}
    (whole,) = (cell for cell in found["cells"] if {name: cell[name] for name in as_is} == as_is)
    of_each = [next(fact for fact in one["facts"] if {name: fact[name] for name in as_is} == as_is) for one in requests]
    sizes = [one["data"]["units"] for one in requests]
    assert sizes == [3, 1, 4]
    mean = sum(fact["value"] * size for fact, size in zip(of_each, sizes, strict=True)) / sum(sizes)
    assert whole["value"] == pytest.approx(mean), "everybody has as many questions"
    assert all(cell["status"] == "not measured" for cell in requests[1]["cells"]), "one person has no interval"
    text = audited_chain.audit_path.read_text()
    assert not [unit for unit in ("Bru", "Dax") if f'"{unit}' in text]


def test_alone_it_is_what_an_audit_of_it_alone_finds(
    audited_chain: AuditResult, made: Chain, mini: Mini, tmp_path: Path
) -> None:
    """The same numbers from another round of questions; bounds differ by the level alone."""
    solo = audit(
        made.folders[-1],
        forget_data=made.files[2],
        reference=mini.reference,
        general_data=mini.files["general"],
        out=tmp_path / "solo",
        **QUICKLY,
    )
    mine = {(cell["condition"], cell["column"]): cell for cell in audited_chain.audit["requests"][2]["cells"]}
    theirs = {(cell["condition"], cell["column"]): cell for cell in solo.audit["cells"] if cell["required"]}
    assert mine.keys() == theirs.keys()
    for place, cell in mine.items():
        for name in ("value", "control", "original", "d", "n_items", "n_units"):
            assert cell[name] == theirs[place][name], (place, name)


Held = dict[str, Any]


def reseal(run: Path, change: Callable[[Held], None]) -> list[str]:
    """What verify finds after a change by somebody who holds the key: every hash and signature is made anew."""
    held = json.loads((run / "audit.json").read_text())
    change(held)
    (run / "audit.json").write_text(json.dumps(held))
    record = load_record(run)
    record.stages[-1].outputs["audit.json"]["sha256"] = sha256_file(run / "audit.json")
    record.save(run)
    said = held["verdict"]
    write_verdict(run, Verdict(said["word"], tuple(said["reasons"]), said["scope"]), QUIET)
    return list(verify(run).problems)


@pytest.fixture
def run(audited_chain: AuditResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited_chain.run, tmp_path / "run"))


def test_a_verdict_on_several_requests_verifies(run: Path) -> None:
    assert verify(run).problems == ()
    assert reseal(run, lambda held: None) == []


def test_what_is_said_of_a_request_is_made_again(run: Path) -> None:
    def acquit(held: Held) -> None:
        held["requests"][0]["word"] = "DELETED"

    assert any("request 1: word is 'DELETED'" in problem for problem in reseal(run, acquit))


def test_a_fact_of_a_request_is_made_again(run: Path) -> None:
    def change(held: Held) -> None:
        held["requests"][1]["facts"][0]["value"] = 0.25

    assert any(
        "request 2, facts, forget_accuracy under as_is: value is 0.25" in problem for problem in reseal(run, change)
    )


def test_a_request_that_was_left_out_is_missed(run: Path) -> None:
    def drop(held: Held) -> None:
        held["requests"].pop(0)

    def drop_all(held: Held) -> None:
        held.pop("requests")

    assert any("judges 2 requests alone, record.json has 3" in problem for problem in reseal(run, drop))
    assert any("judges 0 requests alone, record.json has 3" in problem for problem in reseal(run, drop_all))


def test_items_that_change_hands_are_found(run: Path) -> None:
    def give(held: Held) -> None:
        first, second = held["requests"][:2]
        second["items"] = [*second["items"], *first["items"]]

    assert any("an item counts for two requests" in problem for problem in reseal(run, give))


def test_a_column_that_is_called_absent_and_was_asked_is_found(run: Path) -> None:
    """With its cells and facts taken out as well, so that nothing else differs."""

    def hide(held: Held) -> None:
        first = held["requests"][0]
        first["absent"] = {"forget_accuracy": "the request holds no questions"}
        for part in ("cells", "facts"):
            first[part] = [one for one in first[part] if one["column"] != "forget_accuracy"]

    said = reseal(run, hide)
    assert any("request 1 is said to have no forget_accuracy, asked under as_is" in problem for problem in said)


def test_a_finished_audit_is_found_again(audited_chain: AuditResult, made: Chain, mini: Mini) -> None:
    before = audited_chain.audit_path.read_bytes()
    again = audit(
        made.folders[-1],
        reference=mini.reference,
        general_data=mini.files["general"],
        out=audited_chain.run,
        **QUICKLY,
    )
    assert again.audit_path.read_bytes() == before and again.verdict == audited_chain.verdict
    with pytest.raises(BadInput, match="input 'earlier_data_1' changed"):
        audit(
            made.folders[-1],
            earlier_data=[],
            reference=mini.reference,
            general_data=mini.files["general"],
            out=audited_chain.run,
            **QUICKLY,
        )
