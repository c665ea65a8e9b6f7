from __future__ import annotations

import copy
from types import ModuleType

import pytest

from letheon.reports.scatter import free_boxes, of_runs, point, trade_off, utility_columns


def test_names_of_ten_runs_at_one_place_do_not_overlap_and_stay_in_the_frame() -> None:
    texts = [f"run number {position}" for position in range(10)]
    places = [(5.0 + position, 190.0 - position) for position in range(10)]
    boxes = free_boxes(texts, places, 470, 200)
    for one, box in enumerate(boxes):
        assert box[0] >= 0 and box[2] <= 470 and box[1] >= 0 and box[3] <= 200
        for other in boxes[one + 1 :]:
            assert box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]
        for x, y in places:
            assert not (box[0] < x < box[2] and box[1] < y < box[3])


def test_a_name_beside_a_free_point_is_level_with_it() -> None:
    ((left, bottom, _, top),) = free_boxes(["a"], [(100.0, 50.0)], 470, 200)
    assert (bottom + top) / 2 == 50 and 100 < left < 115


def test_a_name_at_the_right_edge_stands_on_the_left() -> None:
    ((_, _, right, _),) = free_boxes(["a long name"], [(460.0, 50.0)], 470, 200)
    assert right < 460


def test_utility_is_the_mean_of_what_was_measured(fakes: ModuleType) -> None:
    audit = fakes.make_audit("gate")
    columns = utility_columns(audit)
    assert len(columns) == 4
    assert point(audit, "as_is", columns) == pytest.approx((0.02, (0.98 + 0.90 + 0.92 + 0.9) / 4))
    assert point(audit, "as_is", columns, of="original") == pytest.approx((1.0, (1.0 + 0.93 + 0.97 + 0.95) / 4))


def test_a_condition_without_one_utility_has_no_point(fakes: ModuleType) -> None:
    audit = fakes.make_audit("gate", missing={("nf4", "general_accuracy"): "why"})
    columns = utility_columns(audit)
    assert point(audit, "nf4", columns) is None and point(audit, "fp4", columns) is not None


def test_what_comes_back_is_named_and_said(fakes: ModuleType) -> None:
    figure = trade_off(fakes.make_audit("sham"), "k")
    assert figure is not None
    assert "after, int4, per row" in figure.svg and "after, NF4" not in figure.svg
    assert "under int4, per row: 1.00 of the forgotten facts answered" in figure.text_alternative
    assert "the original: 1.00 of the forgotten facts answered, utility 0.96" in figure.text_alternative


def test_over_several_runs_each_is_named_and_an_arrow_shows_the_sham(fakes: ModuleType) -> None:
    runs = [(kind, fakes.make_audit(kind)) for kind in fakes.KINDS]
    figure = of_runs(runs, "k")
    assert figure is not None
    for kind in fakes.KINDS:
        assert f">{kind}</text>" in figure.svg
        assert f"{kind}: " in figure.text_alternative
    assert figure.svg.count("int4, per row</text>") == 1
    assert (
        "sham: 0.00 of the forgotten facts answered, utility 0.94, but under int4, per row 1.00"
        in figure.text_alternative
    )


def test_without_a_measured_utility_there_is_no_figure(fakes: ModuleType) -> None:
    audit = copy.deepcopy(fakes.make_audit("gate"))
    audit["cells"] = [cell for cell in audit["cells"] if cell["column"].startswith("forget")]
    assert trade_off(audit, "k") is None
    assert of_runs([("a", audit)], "k") is None
