"""Several runs in one figure: what is drawn, from the records of finished and unfinished runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cls.commands.arguments import Compare
from cls.config import Run, change, to_yaml
from cls.evaluation.curves import PANELS, CurveGroup, lines_of, read_groups
from cls.evaluation.plots import group_curves_figure
from cls.evaluation.predictions import Predictions, write_parquet
from cls.evaluation.run_record import RunRecord
from cls.runtime.signals import StopSignal

KEYS = tuple(PANELS)


def make_run(out: Path, epochs: int, lr: float, seed: int, *, old: bool = False, ended: bool = False) -> Path:
    """A record of two steps an epoch; values are functions of epoch, rate and seed."""
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for step in (2 * epoch - 1, 2 * epoch):
            rows.append({"step": step, "epoch": epoch, "train/loss": step + lr + seed})
        end = {"step": 2 * epoch, "epoch": epoch, "val/loss": 3 * lr + epoch, "val/accuracy": epoch / 10 + seed / 100}
        means = {"train/epoch_loss": 2 * epoch - 0.5 + lr + seed, "train/epoch_accuracy": epoch / 20 + seed / 100}
        rows.append(end if old else end | means)
    out.mkdir(parents=True)
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "config.yaml").write_text(to_yaml(change(Run(), seed=seed, optim={"lr": lr})))
    if ended:
        p = Predictions(ids=["a", "b"], labels=np.array([0, 1]), probs=np.full((2, 2), 0.5), errors=["", ""],
                        classes=("x", "y"), loss=0.0)  # fmt: skip
        write_parquet(out / "predictions" / "val.parquet", p)
    return out


def test_lines_are_the_rows_at_the_ends_of_epochs(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", 3, 0.5, 1)
    smoke = {"step": 7, "epoch": 3, "val/loss": 99.0, "val/accuracy": 0.99, "train/epoch_loss": 99.0}
    with (out / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 7, "epoch": 4, "train/loss": 0.0}) + "\n" + json.dumps(smoke) + "\n")
    lines = lines_of(RunRecord(out))
    assert lines["train/epoch_loss"] == {1: 3.0, 2: 5.0, 3: 7.0}
    assert lines["val/loss"] == {1: 2.5, 2: 3.5, 3: 4.5}
    assert lines["val/accuracy"] == pytest.approx({1: 0.11, 2: 0.21, 3: 0.31})
    assert lines["train/epoch_accuracy"] == pytest.approx({1: 0.06, 2: 0.11, 3: 0.16})
    old = lines_of(RunRecord(make_run(tmp_path / "old", 2, 0.5, 1, old=True)))
    assert old["train/epoch_loss"] == {1: 3.0, 2: 5.0} and old["train/epoch_accuracy"] == {}


def test_runs_that_differ_in_the_seed_are_one_line_with_a_band(tmp_path: Path) -> None:
    """Seed 2 has not come as far as the others."""
    paths = [make_run(tmp_path / f"high-s{seed}", 2 if seed == 2 else 4, 0.5, seed) for seed in range(3)]
    paths.append(make_run(tmp_path / "low", 4, 0.25, 0))
    paths.append(make_run(tmp_path / "begun", 0, 0.75, 0))
    (tmp_path / "other").mkdir()
    groups, skipped = read_groups([*map(str, paths), str(tmp_path / "other")])
    assert [(group.name, len(group.runs)) for group in groups] == [("high", 3), ("low", 1)]
    assert skipped == {str(paths[-1]): "no epoch has ended", str(tmp_path / "other"): "no config.yaml"}
    curve = groups[0].curve("val/accuracy")
    assert (curve.epochs, curve.low) == ([1, 2], pytest.approx([0.1, 0.2]))
    assert curve.mean == pytest.approx([0.11, 0.21]) and curve.high == pytest.approx([0.12, 0.22])
    assert groups[1].curve("train/epoch_loss").mean == [1.75, 3.75, 5.75, 7.75]
    with pytest.raises(ValueError, match=r"there is nothing to draw: .*begun \(no epoch has ended\)"):
        read_groups([str(paths[-1])])
    with pytest.raises(ValueError, match="nowhere does not exist"):
        read_groups([str(tmp_path / "nowhere"), str(paths[0])])


def test_the_figure_shows_them(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"high-s{seed}", 3, 0.5, seed) for seed in range(3)]
    groups, _ = read_groups([*map(str, paths), str(make_run(tmp_path / "low", 5, 0.25, 0))])
    figure = group_curves_figure(groups)
    for axes, key in zip(figure.axes, KEYS, strict=True):
        for line, group in zip(axes.lines, groups, strict=True):
            curve = group.curve(key)
            assert (list(line.get_xdata()), list(line.get_ydata())) == (curve.epochs, curve.mean)
        (band,) = axes.collections  # one seed has none
        corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
        curve = groups[0].curve(key)
        assert corners >= {*zip(curve.epochs, curve.low, strict=True), *zip(curve.epochs, curve.high, strict=True)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["high (3 seeds)", "low"]


def test_squared_errors_are_not_drawn_on_the_axis_of_log_losses() -> None:
    lines = {key: {1.0: 0.5, 2.0: 0.25} for key in KEYS}
    groups = [CurveGroup("log", [lines]), CurveGroup("squared", [lines], "mse")]
    assert [len(axes.lines) for axes in group_curves_figure(groups).axes] == [1, 1, 2, 2]
    figure = group_curves_figure(groups)
    assert "the squared errors of squared have another axis" in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["log", "squared"]
    alone = group_curves_figure(groups[1:])
    assert [len(axes.lines) for axes in alone.axes] == [1, 1, 1, 1] and alone.get_suptitle() == ""


def test_many_long_names_stay_apart_and_inside() -> None:
    lines = {key: {1.0: 0.5, 2.0: 0.25} for key in KEYS}
    figure = group_curves_figure([CurveGroup(f"{number} " + 30 * "name", [lines, lines]) for number in range(15)])
    drawn = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(drawn) == 15
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    inner, outer = figure.legends[0].get_window_extent(), figure.bbox
    assert outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0
    assert inner.y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)


def test_the_command_draws_unfinished_runs_and_says_that_there_are_no_tables(tmp_path: Path, capsys: Any) -> None:
    paths = [str(make_run(tmp_path / name, 2, lr, 0, old=True)) for name, lr in (("a", 0.5), ("b", 0.25))]
    picture = tmp_path / "c.png"
    document, problem = Compare(runs=(*paths, str(tmp_path)), curves=str(picture), to="t.md").do(StopSignal())
    assert problem is None and document["curves"]["lines"] == {"a": 1, "b": 1} and document["comparisons"] == []
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 1000
    said = capsys.readouterr().err
    assert f"curves of 2 runs in 2 lines: {picture}; skipped: {tmp_path} (no config.yaml)" in said
    assert "no tables: a comparison needs the predictions that runs write when they end; t.md was not written" in said


def test_the_command_draws_beside_its_tables(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path / name, 2, lr, 0, ended=True)) for name, lr in (("a", 0.5), ("b", 0.25))]
    paths.append(str(make_run(tmp_path / "c", 1, 0.75, 0)))
    document, _ = Compare(runs=tuple(paths), curves=str(tmp_path / "c.png")).do(StopSignal())
    assert [group["group"] for group in document["groups"]] == ["a", "b"] and set(document["skipped"]) == {paths[2]}
    assert list(document["curves"]["lines"]) == ["a", "b", "c"] and (tmp_path / "c.png").stat().st_size > 10_000
