"""The report page's lines."""

from itertools import pairwise

import numpy as np
import pytest

from cls.evaluation.report.charts import POINTS, curves, thin


@pytest.mark.parametrize("length", [POINTS + 1, 2 * POINTS - 1, 3 * POINTS + 7])
def test_a_long_line_is_means_of_its_parts_whatever_their_sizes(length: int) -> None:
    rng = np.random.default_rng(0)
    x, y = np.arange(length, dtype=float), rng.normal(size=length)
    ends = [int(end) for end in np.linspace(0, length, POINTS + 1)]
    parts = [slice(a, b) for a, b in pairwise(ends)]
    assert len({part.stop - part.start for part in parts}) == 2  # of two sizes
    found = thin(x.tolist(), y.tolist())
    assert found[0] == pytest.approx([x[part].mean() for part in parts])
    assert found[1] == pytest.approx([y[part].mean() for part in parts])


def test_training_figures_are_beside_those_of_validation() -> None:
    rows = [{"step": s, "epoch": 1, "train/loss": 3 / s, "train/accuracy": s / 40} for s in range(1, 9)]
    ends = [{"step": s, "epoch": s // 4, "train/epoch_loss": 2 / s, "train/epoch_accuracy": s / 50, "val/loss": 4 / s,
             "val/accuracy": s / 60} for s in (4, 8)]  # fmt: skip
    charts = {chart["key"]: {line["name"]: (line["x"], line["y"]) for line in chart["data"]["lines"]}
              for chart in curves([*rows, *ends])}  # fmt: skip
    assert charts["accuracy"]["training (epoch means)"] == ([4, 8], [0.08, 0.16])
    assert charts["accuracy"]["validation"] == ([4, 8], [0.066667, 0.13333])
    assert charts["accuracy"]["each step"][0] == list(range(1, 9))
    assert charts["loss"]["training (epoch means)"] == ([4, 8], [0.5, 0.25])
    young = {chart["key"]: [line["name"] for line in chart["data"]["lines"]] for chart in curves(rows)}
    assert young["accuracy"] == young["loss"] == ["training"]


def test_a_single_value_is_a_dot() -> None:
    row = {"step": 1, "epoch": 1, "train/loss": 0.7, "train/lr": 1e-3, "train/images_per_second": 9.0, "val/loss": 0.6}
    for rows, dots in (([row], True), ([row, row | {"step": 2}], False)):
        paths = [path for chart in curves(rows) for path in chart["paths"] if path["name"] != "validation"]
        assert len(paths) == 3 and all(bool(path["dots"]) is dots for path in paths)


def test_the_marks_of_a_small_learning_rate_are_short() -> None:
    for rate, marks in ((5e-4, ["0", "1.5e-4", "3e-4", "4.5e-4"]), (2e-3, ["0", "0.0005", "0.001", "0.0015", "0.002"])):
        (chart,) = curves([{"step": step, "epoch": 1, "train/lr": rate} for step in (1, 2)])
        assert [mark["text"] for mark in chart["y"]] == marks
    rows = [{"step": step, "epoch": 1, "train/images_per_second": 600.0 * step} for step in (1, 2, 3)]
    (chart,) = curves(rows)
    assert [mark["text"] for mark in chart["y"]] == ["0", "400", "800", "1,200", "1,600"]
    rows = [{"step": step, "epoch": 1, "val/accuracy": 1e-4 * step} for step in (1, 2)]  # a share stays one
    assert all(mark["text"].endswith("%") for chart in curves(rows) for mark in chart["y"])
