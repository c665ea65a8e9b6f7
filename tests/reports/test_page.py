from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest

from letheon.errors import BadInput
from letheon.reports import page as module
from letheon.reports.page import compare, report
from letheon.reports.story import privleak
from letheon.reports.wording import interval, number

VOID = {"meta", "link", "br", "img", "hr", "input"}
SHOWN = ("gate", "ga", "sham")
EVIL = '"><img src=x onerror=alert(1)><script>alert(1)</script>'


class Page(HTMLParser):
    """A page as a browser sees it: elements with attributes, and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page_of(run: Path) -> Page:
    page = Page(report(run).read_text(encoding="utf-8"))
    assert not page.open
    return page


@pytest.fixture(scope="module")
def pages(fakes: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One page a kind of run, and one over all of them."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [fakes.write_run(folder / kind, kind) for kind in SHOWN]
    texts = {run.name: report(run).read_text(encoding="utf-8") for run in runs}
    texts["all"] = compare(runs, folder / "all.html", title="All", intro="First.\n\nSecond.").read_text(
        encoding="utf-8"
    )
    return texts


# --- safe and self-contained


def test_a_page_needs_nothing_but_itself(fakes: ModuleType, pages: dict[str, str]) -> None:
    for name in pages:
        text = pages[name]
        assert "http" not in text
        assert "//" not in re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        assert "@import" not in text
        assert set(re.findall(r"url\((.)", text)) <= {"#"}
        addresses = {
            value
            for _, attributes in Page(text).elements
            for key, value in attributes.items()
            if key in ("src", "href")
        }
        assert all(value is not None and value.startswith("#") for value in addresses)


def test_a_policy_forbids_scripts_and_addresses(pages: dict[str, str]) -> None:
    metas = [attributes for tag, attributes in Page(pages["gate"]).elements if tag == "meta"]
    policy = next(meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_markup_stays_text_wherever_it_comes_from(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(
        tmp_path / EVIL.replace("/", "|"),
        "sham",
        missing={("int8", "verbatim"): EVIL, ("nf4", "forget_accuracy"): EVIL},
    )
    fakes.write_lines(run / "items.jsonl", fakes.make_items(answer=EVIL))
    audit = json.loads((run / "audit.json").read_text())
    audit["data"]["forget"]["path"] = audit["control"]["sentence"] = EVIL
    audit["conditions"]["int8"]["provenance"] = EVIL
    audit["columns"]["verbatim"]["label"] = EVIL
    for old, new in (("verbatim", EVIL), ("int4_group32", EVIL + "2")):  # unknown names are shown as they are
        text = (
            json.dumps(audit)
            .replace(f'": "{old}"', f'": {json.dumps(new)}')
            .replace(f'"{old}":', f"{json.dumps(new)}:")
        )
        audit = json.loads(text)
    (run / "audit.json").write_text(json.dumps(audit))
    verdict = json.loads((run / "verdict.json").read_text())
    verdict.update(reasons=[EVIL], scope=EVIL)
    (run / "verdict.json").write_text(json.dumps(verdict))
    (run / EVIL.replace("/", "|")).mkdir()
    (run / EVIL.replace("/", "|") / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')

    page = page_of(run)
    both = Page(
        compare([run], tmp_path / "all.html", title=EVIL, intro=EVIL, described=[EVIL]).read_text(encoding="utf-8")
    )
    for found in (page, both):
        assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in found.elements}
        assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]
        assert found.text.count("<script>alert(1)</script>") > 15


def test_the_same_run_gives_the_same_bytes_whatever_the_user_set(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run", "sham")
    first = report(run).read_bytes()
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "axes.facecolor": "red", "svg.fonttype": "path", "font.size": 30}
    ):
        assert report(run).read_bytes() == first


def test_another_process_gives_the_same_bytes(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run", "vague")
    here = report(run).read_bytes()
    (run / "report.html").unlink()
    code = f"from pathlib import Path; from letheon.reports.page import report; report(Path({str(run)!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (run / "report.html").read_bytes() == here


def test_a_page_that_cannot_be_made_leaves_the_old_one(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run")
    before = report(run).read_bytes()
    (run / "audit.json").write_text("{}")
    with pytest.raises(BadInput, match="is not an audit of this version"):
        report(run)
    assert (run / "report.html").read_bytes() == before


def test_no_date_but_that_of_the_verdict(fakes: ModuleType, pages: dict[str, str]) -> None:
    assert "2026-11-21 09:40 UTC" in pages["gate"]
    assert set(re.findall(r"\b20\d\d-\d\d-\d\d", pages["gate"])) == {fakes.CREATED[:10]}


def test_a_page_of_forty_rows_and_twenty_probes(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run")
    (run / "audit.json").write_text(json.dumps(fakes.make_large()))
    text = report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert text.count('<table class="matrix large">') == 2 and text.count('<tr class="group">') == 5 + 3
    for said in ("Attacks on weights", "What attacks bring back", "Who was in the training data?", "over-forgotten"):
        assert said in page.text
    assert text.count('<td class="spent">budget exhausted') == 12 + 8 - 2
    assert "Nothing of this was asked under" in page.text
    labels = [str(attributes.get("aria-label")) for _, attributes in page.elements if attributes.get("role") == "img"]
    assert any(label.startswith("Relearn, along steps") for label in labels)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_head_row_and_first_column_stay_in_sight_and_paper_shows_all() -> None:
    css = (Path(module.__file__).with_name("style.css")).read_text(encoding="utf-8")
    screen, paper = css.split("@media print")
    assert ".matrix thead :is(th, td) { position: sticky; top: 0;" in screen
    assert "position: sticky; left: 0;" in screen and ".scroll.tall { max-height" in screen
    assert "max-height: none" in paper and "position: static" in paper


# --- everybody can read it


def test_every_figure_has_a_text_alternative(fakes: ModuleType, pages: dict[str, str]) -> None:
    for name in pages:
        images = [attributes for _, attributes in Page(pages[name]).elements if attributes.get("role") == "img"]
        assert (
            len(images)
            == pages[name].count("<svg")
            == len(re.findall(r'<div role="img" aria-label="[^"]{40,}"><svg', pages[name]))
        )
        assert all("aria-hidden" in attributes for tag, attributes in Page(pages[name]).elements if tag == "svg")
        assert len(images) == (3 if name != "all" else 3 * len(SHOWN) + 1)


def test_headers_say_what_they_head_and_the_page_its_language(fakes: ModuleType, pages: dict[str, str]) -> None:
    for name in pages:
        elements = Page(pages[name]).elements
        assert ("html", {"lang": "en"}) in elements
        assert all(attributes.get("scope") in ("col", "row", "rowgroup") for tag, attributes in elements if tag == "th")


def test_every_id_is_unique_and_every_link_leads_to_one(fakes: ModuleType, pages: dict[str, str]) -> None:
    for name in pages:
        elements = Page(pages[name]).elements
        ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = {str(attributes["href"])[1:] for _, attributes in elements if "href" in attributes}
        links |= set(re.findall(r"url\(#([^)]+)\)", pages[name]))
        assert links and links <= set(ids)


def _colours(css: str) -> dict[str, tuple[float, ...]]:
    hexed = {
        name: tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
        for name, code in re.findall(r"--([\w-]+): #(\w{6})", css)
    }
    plain = {
        name: tuple(int(part) / 255 for part in parts)
        for name, *parts in re.findall(r"--([\w-]+): (\d+) (\d+) (\d+);", css)
    }
    return {**hexed, **plain}


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_in_the_light_and_in_the_dark(pages: dict[str, str]) -> None:
    css = pages["gate"][: pages["gate"].index("* { box-sizing")]
    light, dark = css.split("@media screen and (prefers-color-scheme: dark)")
    for colours in (_colours(light), _colours(dark)):
        for ground in ("paper", "surface"):
            for name in ("ink", "muted", "subject", "original", "control", "found", "clear", "open", "lost"):
                assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        for name, strength in (("warm", 0.8), ("cold", 0.7)):  # as in the style of a cell with full shade
            shade = tuple(
                strength * top + (1 - strength) * base
                for top, base in zip(colours[name], colours["surface"], strict=True)
            )
            assert _contrast(colours["ink"], shade) >= 4.5, name


# --- all of it is there


@pytest.mark.parametrize("kind", ["gate", "ga", "sham"])
def test_every_cell_stands_in_the_matrix_with_its_interval(fakes: ModuleType, pages: dict[str, str], kind: str) -> None:
    matrices = re.findall(r'<table class="matrix">.*?</table>', pages[kind], flags=re.DOTALL)
    assert len(matrices) == 2
    rows = [
        row for matrix in matrices for row in re.findall(r"<tr>(.*?)</tr>", matrix, flags=re.DOTALL) if "<b>" in row
    ]
    cells = {(cell["condition"], cell["column"]): cell for cell in fakes.make_audit(kind)["cells"]}
    for start, names in ((0, list(fakes.COLUMNS)[:7]), (6, list(fakes.COLUMNS)[7:])):
        for position, condition in enumerate(fakes.CONDITIONS):
            shown = re.findall(r"<td.*?</td>", rows[start + position], flags=re.DOTALL)
            assert len(shown) == len(names)
            for text, name in zip(shown, names, strict=True):
                cell = cells[condition, name]
                if cell["status"] == "not applicable":
                    assert ">n/a" in text
                    continue
                assert f"<b>{number(cell['value'])}</b>" in text
                assert f"<i>{interval(cell['lower'], cell['upper'])}</i>" in text
                assert (cell.get("judgement") or "") in text


def test_a_cell_has_a_mark_and_words_beside_its_colour(pages: dict[str, str]) -> None:
    found = re.findall(r'<td class="warm found".*?</td>', pages["sham"], flags=re.DOTALL)
    assert found and all("▲" in cell and "knowledge found" in cell for cell in found)


def test_every_number_has_its_counts_control_and_bounds(fakes: ModuleType, pages: dict[str, str]) -> None:
    audit = fakes.make_audit("gate")
    cell = next(
        cell for cell in audit["cells"] if (cell["condition"], cell["column"]) == ("nf4", "membership_questions")
    )
    bounds = interval(cell["d_lower"], cell["d_upper"], is_signed=True)
    row = next(row for row in pages["gate"].split("<tr>") if bounds in row and "NF4" in row)
    for text in ("96", "40", number(cell["control"]), "±0.15", "clear"):
        assert f">{text}<" in row or f" {text}<" in row


def test_what_was_not_measured_is_said_with_its_reason(fakes: ModuleType, tmp_path: Path) -> None:
    why = "a group of 32 does not divide 100 inputs"
    missing = {("int4_group32", "forget_accuracy"): why, ("int4_group32", "retain_accuracy"): why}
    run = fakes.write_run(tmp_path / "run", missing=missing)
    text = report(run).read_text(encoding="utf-8")
    section = text[text.index("What was not measured") :]
    assert section.count(why) == 1
    assert "Facts, trained wordings: int4, groups of 32" in section
    assert "Retained facts, trained wordings: int4, groups of 32" in section
    assert len(re.findall(r'<td class="missing">not measured<sup><a href="#run-reason-\d', text)) == 2
    assert "INCONCLUSIVE" in text and "1 not measured" in text


@pytest.mark.parametrize(
    ("kind", "word", "sentence"),
    [
        ("gate", "DELETED", "No evidence above the margin in any of 22 required cells under 6 conditions"),
        ("sham", "NOT DELETED", "under 2 of 6 conditions: as is; int4, per row."),
        ("ga", "NOT USABLE", "Fallen by more than the margin: Retained facts, trained wordings"),
    ],
)
def test_the_verdict_is_a_sentence_with_reasons_and_scope(
    fakes: ModuleType, pages: dict[str, str], kind: str, word: str, sentence: str
) -> None:
    verdict, text = fakes.make_audit(kind)["verdict"], Page(pages[kind]).text
    assert verdict["word"] == word
    head = text[text.index(kind) : text.index("Is it gone?")]
    assert f" {word} " in head and sentence in head and verdict["scope"] in head
    assert all(reason in head for reason in verdict["reasons"])


def test_what_can_only_convict_and_does_is_said_as_such(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run", bare=True)
    audit = json.loads((run / "audit.json").read_text())
    cells = {(cell["condition"], cell["column"]): cell for cell in audit["cells"]}
    cells["nf4", "forget_probability"].update(convicts=True, judgement="knowledge found")
    cells["fp4", "forget_probability"].update(convicts=True)
    audit["verdict"]["word"] = "NOT DELETED"
    (run / "audit.json").write_text(json.dumps(audit))
    text = Page(report(run).read_text(encoding="utf-8")).text
    assert (
        "Traces of the forget set in none of 22 required cells, and where an answer can only convict: NF4, blocks of 64."
        in text
    )
    assert "can only convict" in text.split("none of 22 required cells", 1)[1].replace("answer can only convict", "")


@pytest.mark.parametrize("damaged", [None, {"word": "FORGOTTEN"}])
def test_an_audit_without_one_of_the_four_verdicts_is_refused(
    fakes: ModuleType, tmp_path: Path, damaged: dict[str, str] | None
) -> None:
    run = fakes.write_run(tmp_path / "run", bare=True)
    audit = json.loads((run / "audit.json").read_text())
    (run / "audit.json").write_text(json.dumps({**audit, "verdict": damaged}))
    with pytest.raises(BadInput, match=r"the verdict of run .* Run `letheon audit` again"):
        report(run)


def test_a_grid_that_rounds_back_says_so(pages: dict[str, str]) -> None:
    back = (
        "No code differs from the original’s, weights moved by 0.12 of a step: "
        "with equal scales this grid rounds the model back to the original."
    )
    assert back in pages["sham"] and back not in pages["gate"]
    assert "14 % of the codes differ from the original’s, weights moved by 0.24 of a step." in pages["gate"]


def test_provenance_names_versions_seeds_hashes_times_and_memory(pages: dict[str, str]) -> None:
    text = Page(pages["gate"]).text
    for said in (
        "2.13.0+cpu", "5.23.0", "seed 0", "649 MB", "21.4 s", "2026-11-21 09:22 UTC", "a" * 64, "9" * 64, "quick-1",
        "kernels AVX2",
        "792,832 of 853,120 weights moved; 100 % of the moves survived saving", "stopped after 90 steps: forgotten",
        "Warning: 12 of 640 forget records stand in the retain set as well", "letheon verify",
    ):  # fmt: skip
        assert said in text, said


def test_answers_before_and_after_stand_side_by_side(pages: dict[str, str]) -> None:
    samples = pages["sham"][pages["sham"].index("Answers before and after") :]
    first = samples[samples.index("<tbody>") : samples.index("</tbody>")]
    rows = re.findall(r"<tr>(.*?)</tr>", first)
    assert len(rows) == 6
    for row in rows:
        given = re.findall(r"<td( class=\"right\")?>", row)[2:]
        assert [bool(mark) for mark in given] == [True, False, True]


def test_answers_are_found_under_the_name_of_their_set_too(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run")
    sets = {"forget_accuracy": "forget_held_out", "retain_accuracy": "retain_questions"}
    lines = [
        {**line, "column": None, "set": sets[line["column"]]} for line in fakes.make_items() if line["column"] in sets
    ]
    fakes.write_lines(run / "items.jsonl", lines)
    text = page_of(run).text
    assert "To be forgotten, other wordings prompt" in text and "To be kept prompt" in text
    assert "trained wordings prompt" not in text


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"value": -32.46, "muse_auc": 0.43, "muse_auc_reference": 0.63},
            "-32.5 (MUSE's AUC 0.43, of the reference 0.63)",
        ),
        ({"value": None, "reason": "needs a retrained reference"}, "not measured, needs a retrained reference."),
    ],
)
def test_privleak_is_said_or_why_not(fakes: ModuleType, found: dict[str, Any], said: str) -> None:
    assert said in privleak({"privleak": found}) and privleak(fakes.make_audit()) == ""


# --- runs that lack something


def test_an_audit_alone_is_enough(fakes: ModuleType, tmp_path: Path) -> None:
    text = page_of(fakes.write_run(tmp_path / "run", bare=True)).text
    assert "purged, or never kept" in text
    assert "There is no record.json in this run" in text
    assert "The verdict is not signed." in text
    assert "Training" not in text


def test_a_purged_run_says_that_it_was_purged(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run")
    assert "Rimtasar" in page_of(run).text
    (run / "items.jsonl").unlink()
    text = page_of(run).text
    assert "The raw text was purged." in text and "Rimtasar" not in text


def test_a_holdout_control_has_no_utility_of_its_own(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run", bare=True)
    audit = json.loads((run / "audit.json").read_text())
    audit["control"] = {"kind": "holdout", "sentence": "24 units that were never trained on, asked of the same model"}
    audit["models"]["reference"] = None
    audit["scores"] = {"control": {"as_is": {"forget_accuracy": {"constant": 0.5}}}}
    (run / "audit.json").write_text(json.dumps(audit))
    page = report(run).read_text(encoding="utf-8")
    assert "the control: 0.02 of the forgotten facts answered" in page
    assert "never knew: holdout units, as is" in page


def test_cells_without_numbers_break_nothing(fakes: ModuleType, tmp_path: Path) -> None:
    run = fakes.write_run(tmp_path / "run", bare=True)
    audit = json.loads((run / "audit.json").read_text())
    for cell in audit["cells"]:
        for name in ("lower", "d", "d_lower", "original", "control"):
            cell[name] = None
    audit["utility"][0] = {
        "column": "retain_accuracy",
        "condition": "as_is",
        "margin": 0.1,
        "judgement": "not measured",
        "reason": "no retain set",
    }
    (run / "audit.json").write_text(json.dumps(audit))
    text = page_of(run).text
    assert "not measured : no retain set" in text
    assert "Distance to the control, against" not in text


def test_a_folder_without_an_audit_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"audit\.json cannot be read: No such file or directory\. Run `letheon audit`"):
        report(tmp_path)


# --- several runs


def test_the_summary_has_a_row_a_run_and_one_for_each_end_of_the_scale(
    fakes: ModuleType, pages: dict[str, str]
) -> None:
    table = re.search(r'<table class="matrix summary">.*?</table>', pages["all"], flags=re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr.*?</tr>", table[0], flags=re.DOTALL)[1:]
    assert len(rows) == 2 + len(SHOWN)
    assert "the original" in rows[0] and "the control" in rows[1]
    for row, kind in zip(rows[2:], SHOWN, strict=True):
        audit = fakes.make_audit(kind)
        assert f">{kind}</a>" in row and audit["verdict"]["word"] in row
        cells: dict[tuple[str, str], Any] = {(cell["column"], cell["condition"]): cell for cell in audit["cells"]}
        places = [("forget_accuracy", "as_is"), ("forget_accuracy_held_out", "as_is"), ("forget_accuracy", "int4_row")]
        places += [("membership_texts", "as_is"), ("membership_questions", "as_is"), ("retain_accuracy", "as_is")]
        places += [("retain_accuracy_held_out", "as_is"), ("general_accuracy", "as_is")]
        assert re.findall(r"<b>(.*?)</b>", row) == [number(cells[place]["value"]) for place in places]
        assert re.findall(r"<i>(.*?)</i>", row) == [
            interval(cells[place]["lower"], cells[place]["upper"]) for place in places
        ]


def test_each_run_is_folded_away_with_its_own_matrix(fakes: ModuleType, pages: dict[str, str]) -> None:
    assert pages["all"].count('<details class="run">') == len(SHOWN)
    assert pages["all"].count('<table class="matrix">') == 2 * len(SHOWN)
    assert "<p>First.</p>\n<p>Second.</p>" in pages["all"]


def test_all_faults_of_all_runs_are_told_at_once(fakes: ModuleType, tmp_path: Path) -> None:
    good = fakes.write_run(tmp_path / "good")
    with pytest.raises(BadInput, match=r"one(.|\n)*two"):
        compare([good, tmp_path / "one", tmp_path / "two"], tmp_path / "all.html")
    with pytest.raises(BadInput, match="no runs to compare"):
        compare([], tmp_path / "all.html")
    with pytest.raises(BadInput, match="1 runs to compare, but 2 descriptions"):
        compare([good], tmp_path / "all.html", described=["a", "b"])
    assert not (tmp_path / "all.html").exists()


def test_runs_of_different_originals_share_no_row(fakes: ModuleType, tmp_path: Path) -> None:
    runs = [fakes.write_run(tmp_path / kind, kind) for kind in ("gate", "ga")]
    audit = json.loads((runs[1] / "audit.json").read_text())
    audit["models"]["original"]["sha256"] = "7" * 64
    (runs[1] / "audit.json").write_text(json.dumps(audit))
    text = compare(runs, tmp_path / "all.html").read_text(encoding="utf-8")
    table = text[text.index('<table class="matrix summary">') : text.index("</table>")]
    assert "the original" not in table and "the control" in table
