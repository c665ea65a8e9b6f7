from __future__ import annotations

import math
import re
from types import ModuleType

from letheon.reports.figures import LOSS_CUT, curves, distances


def test_the_words_of_the_distances_count_the_judgements(fakes: ModuleType) -> None:
    (figure,) = distances(fakes.make_audit("sham"), "k")
    words = [cell.get("judgement") for cell in fakes.make_audit("sham")["cells"] if cell["required"]]
    assert f"in {len(words)} cells" in figure.text_alternative
    for word in set(words):
        assert f"{words.count(word)} {word}" in figure.text_alternative
    assert "Farthest from 0: Facts, trained wordings under int4, per row +0.98" in figure.text_alternative


def test_only_required_cells_are_drawn_where_there_are_any(fakes: ModuleType) -> None:
    audit = fakes.make_audit("gate")
    (required,) = distances(audit, "k")
    for cell in audit["cells"]:
        cell["required"] = False
    every = distances(audit, "k")
    assert "Probability" not in required.svg and "Probability" in every[0].svg


def test_a_cell_that_can_only_convict_is_drawn_with_the_required_ones(fakes: ModuleType) -> None:
    audit = fakes.make_audit("gate")
    (cell,) = [one for one in audit["cells"] if (one["condition"], one["column"]) == ("nf4", "forget_probability")]
    cell.update(convicts=True, judgement="knowledge found")
    required, more = distances(audit, "k")
    assert "Probability" in required.svg + more.svg
    assert "1 knowledge found" in required.text_alternative + more.text_alternative


def test_many_probes_are_drawn_in_several_figures_of_one_scale(fakes: ModuleType) -> None:
    audit = fakes.make_audit("sham")
    for cell in audit["cells"]:
        cell["required"] = False
    first, second = distances(audit, "k")
    assert [
        len(re.findall(">(?:Facts|Probability|ROUGE-L|Verbatim|Membership)<", one.svg)) for one in (first, second)
    ] == [5, 2]
    ticks = [re.findall(r">(−?-?[0-9.]+)</text>", one.svg) for one in (first, second)]
    assert set(ticks[0]) == set(ticks[1])


def test_without_a_control_there_is_no_figure() -> None:
    cell = {"condition": "as_is", "column": "a", "status": "measured", "value": 0.1, "d": None}
    assert distances({"cells": [cell]}, "k") == []


def _panel_heights(svg: str) -> list[str]:
    return re.findall(r">([^<]*(?:loss|accuracy, at looks)[^<]*)</text>", svg)


def test_a_loss_that_runs_away_is_cut_on_an_axis_of_its_own(fakes: ModuleType) -> None:
    figure = curves("1-forget", fakes.make_metrics("ga"), "k")
    assert figure is not None
    assert _panel_heights(figure.svg) == [f"forget loss, cut at ±{LOSS_CUT:g}", "accuracy, at looks"]
    assert "to -1.0e+30 over 90 steps" in figure.text_alternative and "drawn cut" in figure.text_alternative
    ticks = [float(text.replace("−", "-")) for text in re.findall(r">(−?[\d.]+)</text>", figure.svg)]
    assert min(ticks) >= -LOSS_CUT


def test_a_tame_loss_is_not_cut_and_each_has_its_panel(fakes: ModuleType) -> None:
    figure = curves("1-forget", fakes.make_metrics("gate"), "k")
    assert figure is not None
    assert _panel_heights(figure.svg) == ["forget loss", "retain loss", "accuracy, at looks"]
    assert "retain" in figure.svg and "cut" not in figure.text_alternative


def test_numbers_that_are_none_are_left_out() -> None:
    lines = [{"step": step, "loss": value} for step, value in enumerate((3.0, math.nan, math.inf, None, 1.0), start=1)]
    figure = curves("1-train", lines, "k")
    assert figure is not None and "loss from 3.00 to 1.00 over 2 steps" in figure.text_alternative


def test_lines_without_a_loss_draw_nothing() -> None:
    assert curves("1-train", [{"step": 1, "seconds": 0.1}, {"loss": 2.0}], "k") is None


def test_a_single_step_draws() -> None:
    assert curves("1-train", [{"step": 1, "loss": 2.0, "forget_accuracy": 0.5}], "k") is not None
