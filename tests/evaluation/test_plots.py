import csv
import io
import json
import logging
import math
import os
import stat
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cls.evaluation.plots import (
    confusion_picture,
    curves_figure,
    epoch_ends,
    save_figure,
    smooth,
    worst_classes,
    write_plots,
)
from cls.evaluation.predictions import Predictions, image_names, read_parquet, write_csv, write_parquet
from cls.runtime.files import write_whole

NATURAL = ("0", "1", "2", "10")


def drawn(n=12, classes=NATURAL, seed=0, ids=None):
    rng = np.random.default_rng(seed)
    return Predictions(
        ids=ids or [f"val/{classes[i % len(classes)]}/IMG {i}.JPG" for i in range(n)],
        labels=np.arange(n) % len(classes),
        probs=rng.dirichlet(np.ones(len(classes)), n),
        errors=[""] * n,
        classes=tuple(classes),
        loss=0.1 + 0.2,
    )


def same(a, b):
    return (
        (a.ids, a.errors, a.classes, repr(a.loss)) == (b.ids, b.errors, b.classes, repr(b.loss))
        and a.labels.dtype == b.labels.dtype
        and np.array_equal(a.labels, b.labels)
        and a.probs.tobytes() == b.probs.tobytes()
        and a.probs.shape == b.probs.shape
    )


def with_a_broken_image(p, row=3):
    probs = p.probs.copy()
    probs[row] = 0
    return replace(p, probs=probs, errors=[*p.errors[:row], "truncated file", *p.errors[row + 1 :]])


def test_csv_and_zip(tmp_path):
    p = with_a_broken_image(drawn())
    write_csv(tmp_path, p, fallback=3)
    data = (tmp_path / "prediction.csv").read_bytes()
    rows = list(csv.reader(io.StringIO(data.decode())))
    assert rows[0] == ["image_name", "pred_label"]
    assert [row[0] for row in rows[1:]] == [f"IMG {i}" for i in range(12)]
    expected = [NATURAL[i] for i in p.probs.argmax(axis=1)]
    expected[3] = "10"  # the name of class 3, not its number
    assert [row[1] for row in rows[1:]] == expected
    assert set(expected) == set(NATURAL)  # the test would not see a mix-up of names otherwise
    with zipfile.ZipFile(tmp_path / "prediction.zip") as archive:
        assert archive.namelist() == ["prediction.csv"] and archive.testzip() is None
        assert archive.read("prediction.csv") == data
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)
    packed = (tmp_path / "prediction.zip").read_bytes()
    write_csv(tmp_path / "again", p, fallback=3)
    assert (tmp_path / "again" / "prediction.zip").read_bytes() == packed
    assert sorted(f.name for f in tmp_path.iterdir()) == ["again", "prediction.csv", "prediction.zip"]  # no leftovers


def test_csv_quotes_names(tmp_path):
    p = drawn(2, ('a, "b"', "ü"), ids=["x,1.png", 'y"2.png'])
    write_csv(tmp_path, p, 0)
    rows = list(csv.reader((tmp_path / "prediction.csv").open(newline="", encoding="utf-8")))
    assert [row[0] for row in rows] == ["image_name", "x,1", 'y"2']
    assert {row[1] for row in rows[1:]} <= {'a, "b"', "ü"}


@pytest.mark.parametrize(
    ("ids", "names", "warned"),
    [
        (["test/001.jpg", "test/002.JPEG", "v1.5.webp"], ["001", "002", "v1.5"], ""),
        (["a/1.jpg", "b/1.jpg", "b/2.jpg"], ["a/1", "b/1", "b/2"], "1 of 3 file names"),
        (["a/1.jpg", "a/1.png"], ["a/1.jpg", "a/1.png"], "path and extension"),
        (["train-1.5", "train-1.6"], ["train-1.5", "train-1.6"], ""),  # a number is no extension
        ([], [], ""),
    ],
)
def test_image_names(ids, names, warned, caplog):
    with caplog.at_level(logging.INFO, "cls"):
        assert image_names(ids) == names
    assert (warned in caplog.text) if warned else not caplog.records


def test_parquet_round_trip(tmp_path):
    p = with_a_broken_image(drawn(40))
    p = replace(p, labels=np.where(np.arange(40) < 5, -1, p.labels))
    write_parquet(tmp_path / "predictions" / "val.parquet", p)
    assert same(read_parquet(tmp_path / "predictions" / "val.parquet"), p)
    table = pq.read_table(tmp_path / "predictions" / "val.parquet")  # what another program sees
    assert table.column_names == ["id", "label", "predicted", "error", "probs"]
    assert table["label"].to_pylist()[:6] == [None] * 5 + [NATURAL[5 % 4]]
    guesses = table["predicted"].to_pylist()
    assert guesses[3] is None and guesses[4] == NATURAL[p.probs[4].argmax()]
    assert json.loads(table.schema.metadata[b"classes"]) == list(NATURAL)
    nothing = Predictions(
        ids=[], labels=np.zeros(0, np.int64), probs=np.zeros((0, 4)), errors=[], classes=NATURAL, loss=math.nan
    )
    write_parquet(tmp_path / "none.parquet", nothing)
    assert same(read_parquet(tmp_path / "none.parquet"), nothing)


def test_parquet_of_another_program(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"x\.parquet: not a predictions file"):
        read_parquet(tmp_path / "x.parquet")
    table = pq.read_table(_written(tmp_path)).replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"y\.parquet: not a predictions file.*classes"):
        read_parquet(tmp_path / "y.parquet")


def _written(folder):
    write_parquet(folder / "ok.parquet", drawn())
    return folder / "ok.parquet"


def test_write_whole(tmp_path):
    old = os.umask(0o077)
    try:
        write_whole(tmp_path / "new" / "f", b"one")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new" / "f").stat().st_mode) == 0o644
    reader = (tmp_path / "new" / "f").open("rb")
    write_whole(tmp_path / "new" / "f", b"two")
    assert reader.read() == b"one"  # the old file was replaced, not overwritten
    reader.close()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", b"three")
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["f", "folder", "new"]


def test_smooth():
    assert smooth([3.0, 3.0, 3.0], 0.9) == pytest.approx([3.0, 3.0, 3.0])  # no pull to zero at the start
    values, decay = [1.0, 5.0, 2.0, 8.0], 0.7
    weights = decay ** np.arange(3, -1, -1.0)
    assert smooth(values, decay)[-1] == pytest.approx(float(weights @ values / weights.sum()))


def log(epochs=15, steps=72):
    rows = []
    for step in range(10, epochs * steps + 1, 10):
        rows.append({"step": step, "epoch": 1, "time": 0.0, "train/loss": 2.0 / step, "train/lr": 1e-4})
    rows += [
        {"step": steps * e, "epoch": e, "val/loss": 1 / e, "val/accuracy": 1 - 1 / (e + 1)}
        for e in range(1, epochs + 1)
    ]
    return rows


@pytest.mark.parametrize("c", [1, 100])
def test_pictures(c, tmp_path):
    p = with_a_broken_image(drawn(max(20, 3 * c), [f"class {i}" for i in range(c)]))
    paths = write_plots(tmp_path, p, log(), "accuracy")
    assert {name: path.name for name, path in paths.items()} == {
        "curves": "curves.png", "confusion": "confusion.png", "worst_classes": "worst_classes.png",
    }  # fmt: skip
    for path in paths.values():
        with Image.open(path) as image:
            image.load()
            assert min(image.size) >= 300
            assert np.asarray(image.convert("L")).std() > 5  # not an empty page


def test_confusion_picture_shows_the_matrix(tmp_path):
    # every image of class 0 is taken for class 1: the dark cells are (0, 1) and (1, 1) only
    p = Predictions(
        ids=["a", "b"], labels=np.array([0, 1]), probs=np.array([[0.0, 1.0], [0.0, 1.0]]), errors=["", ""],
        classes=("x", "y"), loss=0.0,
    )  # fmt: skip
    confusion_picture(p, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    dark = np.abs(pixels - [8, 48, 107]).sum(axis=2) < 12  # the colour map's end
    columns = np.flatnonzero(dark.sum(axis=0) > 100)  # not the tip of the colour bar
    height, width = np.ptp(np.flatnonzero(dark[:, columns].any(axis=1))) + 1, len(columns)
    assert height / width == pytest.approx(2.0, abs=0.03)  # two cells, one above the other, and both full
    assert dark[:, columns].sum() > 0.98 * height * width
    assert columns.min() > 0.45 * pixels.shape[1]  # in the right half


@pytest.mark.parametrize(
    "rows",
    [
        [],
        log()[:3],
        [{"step": 5, "epoch": 1, "val/loss": math.nan, "val/accuracy": 0.5}],
        [{"step": 5, "epoch": 1, "train/loss": math.nan, "train/lr": 0.0}],
    ],
    ids=["empty", "no validation", "one validation", "nan"],
)
def test_curves_of_a_young_run(rows, tmp_path):
    save_figure(curves_figure(rows), tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        assert image.size == (1200, 1275)


def drawn_lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_curves_show_the_epoch_means_beside_the_validation():
    rows = [{"step": s, "epoch": 1, "train/loss": 3 / s, "train/accuracy": s / 40} for s in range(1, 9)]
    ends = [{"step": s, "epoch": s / 4, "train/epoch_loss": 2 / s, "train/epoch_accuracy": s / 50,
             "val/loss": 4 / s, "val/accuracy": s / 60} for s in (4, 8)]  # fmt: skip
    loss, score, _ = curves_figure(rows + ends).axes
    assert drawn_lines(loss)["training (epoch means)"] == ([4, 8], [0.5, 0.25])
    assert drawn_lines(loss)["validation"] == ([4, 8], [1.0, 0.5])
    assert drawn_lines(score)["training (epoch means)"] == ([4, 8], [4 / 50, 8 / 50])
    assert ([4, 8], [4 / 60, 8 / 60]) in drawn_lines(score).values()
    assert (list(range(1, 9)), [s / 40 for s in range(1, 9)]) in drawn_lines(score).values()
    loss, score, _ = curves_figure(rows).axes  # in the first epoch
    assert "training (smoothed)" in drawn_lines(score) and not score.texts
    old = [{k: v for k, v in row.items() if not k.startswith("train/") or k == "train/loss"} for row in rows + ends]
    loss, score, _ = curves_figure(old).axes  # of an earlier version
    assert "training (smoothed)" in drawn_lines(loss)
    assert not any("training" in name for name in drawn_lines(score))


def test_a_run_of_one_step_shows_its_figures():
    step = {"step": 1, "epoch": 1, "train/loss": 0.7, "train/accuracy": 0.5, "train/lr": 1e-3}
    for axes in curves_figure([step, {"step": 1, "epoch": 1, "val/loss": 0.6, "val/accuracy": 0.25}]).axes:
        points = [line for line in axes.lines if line.get_marker() == "o"]
        assert points and all(len(line.get_xdata()) == 1 for line in points), axes.get_title(loc="left")


def test_the_last_step_allowed_ends_no_epoch():
    def validation(step, epoch):
        return {"step": step, "epoch": epoch, "val/loss": 0.6, "val/accuracy": 0.25}

    assert epoch_ends([validation(4, 1), validation(8, 2), validation(9, 2)]) == {4: 1, 8: 2}
    assert epoch_ends([validation(1, 0)]) == {} and epoch_ends([validation(4, 1), validation(6, 1.5)]) == {4: 1, 6: 1.5}
    assert epoch_ends([{"step": 4, "val/loss": 1.0}, {"step": 8, "val/loss": 1.0}]) == {4: 1, 8: 2}  # an early version


def test_pictures_without_labels(tmp_path):
    p = replace(drawn(), labels=np.full(12, -1))
    confusion_picture(p, tmp_path / "c.png")
    worst_classes(p, tmp_path / "w.png")
    assert (tmp_path / "c.png").stat().st_size > 5000 and (tmp_path / "w.png").stat().st_size > 2000


@pytest.mark.parametrize(("best_on", "step"), [("accuracy", 30), ("loss", 20)])
def test_the_curves_mark_the_validation_whose_weights_are_kept(best_on, step):
    figures = [(5, 0, 0.9, 0.1), (10, 1, 0.6, 0.7), (20, 2, 0.7, 0.5), (30, 3, 0.8, 0.6)]  # the first of a smoke run
    rows = [{"step": s, "epoch": e, "val/accuracy": a, "val/loss": v} for s, e, a, v in figures]
    _, score, _ = curves_figure(rows, best_on).axes
    assert f"at step {step}" in score.get_title("left")
    assert [list(line.get_xdata()) for line in score.lines if line.get_markersize() == 11] == [[step]]
