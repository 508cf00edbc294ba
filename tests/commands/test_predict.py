"""``cls predict`` on real photos: every kind of input, rows as they become known, several processes, Ctrl-C."""

import contextlib
import csv
import io
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cls.commands.evaluate import evaluate_images
from cls.commands.main import parse_command
from cls.commands.options import EvaluateOptions, PackOptions, PredictOptions, views_of
from cls.commands.pack import pack
from cls.commands.predict import predict_images, ranked, read_list
from cls.config import View
from cls.data.dataset import EvalDataset
from cls.data.sources import load_given
from cls.evaluation.predictions import read_parquet
from cls.evaluation.trained_model import load_trained_model
from cls.runtime.signals import Stopped, StopSignal
from tests.harness import ROOT, environment
from tests.harness.untrained import untrained

CLASSES = 7
NETWORK: dict[str, Any] = {"backbone": "timm/test_resnet"}
FRAME: dict[str, Any] = {"size": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predict") / "run"
    untrained(out, CLASSES, FRAME, NETWORK)
    return out


@pytest.fixture(scope="module")
def folder(clothing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 photos, so that the last batch of 8 is not full."""
    root = tmp_path_factory.mktemp("photos") / "some photos"
    root.mkdir()
    for file in sorted((clothing / "test").iterdir())[:29]:
        shutil.copy(file, root)
    return root


def predicted(run: Path, paths: list[Path] | list[str], out: Path | str = "", **more: Any) -> Any:
    options: dict[str, Any] = {"top_k": 3, "device": "cpu", "workers": 0} | more
    stop = options.pop("stop", StopSignal())
    return predict_images([str(run)], tuple(map(str, paths)), PredictOptions(out=str(out), **options), stop)


Answers = list[dict[str, Any]]


@pytest.fixture
def rows_of(capfd: pytest.CaptureFixture[str], run: Path) -> Callable[..., Answers]:
    """Rows on standard output."""

    def rows(paths: Any, **more: Any) -> Answers:
        capfd.readouterr()
        assert predicted(run, paths, "-", **more) is None
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    return rows


def whole(run: Path, folder: Path, views: tuple[View, ...] = ("identity",)) -> tuple[list[str], np.ndarray]:
    """Ids and probabilities by predict() itself, all at once."""
    trained = load_trained_model(str(run), "cpu", 0, StopSignal())
    rows = load_given([str(folder)], trained.run.data)
    found = trained.predict(EvalDataset(rows, views, trained.run))
    return found.ids, found.probs


def best(probs: np.ndarray, k: int) -> list[list[dict[str, Any]]]:
    """The top k by sorting pairs, a second way."""
    ordered = [sorted((-p, i) for i, p in enumerate(row))[:k] for row in probs.tolist()]
    return [[{"class": f"class {i}", "probability": -p} for p, i in row] for row in ordered]


# --- what is written ---


def test_rows_files_and_the_whole_agree_to_the_last_bit(
    run: Path, folder: Path, tmp_path: Path, rows_of: Callable[..., Answers]
) -> None:
    ids, probs = whole(run, folder)
    assert len(ids) == 29 and probs.std(0).max() > 1e-3
    rows = rows_of([folder], top_k=3)
    assert [row["id"] for row in rows] == ids and {row["error"] for row in rows} == {""}
    assert [row["top"] for row in rows] == best(probs, 3)
    assert [row["predicted"] for row in rows] == [row["top"][0]["class"] for row in rows]

    document = predicted(run, [folder], tmp_path, top_k=3)
    assert document == {"images": 29, "corrupt": 0, "folder": str(tmp_path)}
    head, *table = csv.reader((tmp_path / "top.csv").read_text().splitlines())
    assert head == ["id", "error", "class_1", "probability_1", "class_2", "probability_2", "class_3", "probability_3"]
    flat = [[x for pair in top for x in (pair["class"], repr(pair["probability"]))] for top in best(probs, 3)]
    assert table == [[name, "", *values] for name, values in zip(ids, flat, strict=True)]
    kept = read_parquet(tmp_path / "predictions.parquet")
    assert kept.ids == ids and kept.probs.tobytes() == probs.tobytes() and np.isnan(kept.loss)
    submitted = list(csv.reader((tmp_path / "prediction.csv").read_text().splitlines()))[1:]
    assert submitted == [[Path(row["id"]).stem, row["predicted"]] for row in rows]


def test_all_classes_are_listed_where_more_are_asked_for(folder: Path, rows_of: Callable[..., Answers]) -> None:
    rows = rows_of([folder], top_k=CLASSES + 5)
    assert all(abs(sum(item["probability"] for item in row["top"]) - 1) < 1e-12 for row in rows)
    assert {len(row["top"]) for row in rows} == {CLASSES}


def test_presets_are_views(run: Path, folder: Path, rows_of: Callable[..., Answers]) -> None:
    assert views_of(("none",)) == ("identity",) and views_of(("rotate", "flip")) == ("rotate", "identity", "hflip")
    rows = rows_of([folder], tta=views_of(("all",)))
    _, probs = whole(run, folder, ("identity", "hflip", "rotate", "crop"))
    assert [row["top"] for row in rows] == best(probs, 3)
    assert rows != rows_of([folder], tta=views_of(("flip",))) != rows_of([folder])


def test_random_views_are_of_the_image_not_of_its_place(
    run: Path, folder: Path, tmp_path: Path, rows_of: Callable[..., Answers]
) -> None:
    """A folder, a list backwards, one file and packed images; a batch of another size is rounded otherwise, by 1e-6."""
    more = {"tta": ("rotate", "crop"), "top_k": CLASSES}

    def probs(paths: list[Path]) -> dict[str, dict[str, float]]:
        rows = rows_of(paths, **more)
        return {Path(row["id"]).name: {one["class"]: one["probability"] for one in row["top"]} for row in rows}

    expected = probs([folder])
    files = [folder / name for name in expected]
    assert probs(files[::-1]) == expected
    for label in "ab":
        (tmp_path / "classes" / label).mkdir(parents=True)
        for file in files[label == "b" :: 2]:
            shutil.copy(file, tmp_path / "classes" / label)
    pack(str(tmp_path / "classes"), tmp_path / "packed", PackOptions())
    for paths in ([files[17]], *([shard] for shard in (tmp_path / "packed").glob("*.parquet"))):
        for name, found in probs(paths).items():
            assert found == pytest.approx(expected[name], abs=1e-5)


def test_equal_probabilities_rank_by_class_and_a_corrupt_image_has_none(run: Path) -> None:
    from cls.evaluation.predictions import Predictions

    probs = np.array([[0.2, 0.4, 0.4], [0.0, 0.0, 0.0], [np.nan] * 3])
    p = Predictions(ids=list("abc"), labels=np.full(3, -1), probs=probs, errors=["", "bad", ""],
                    classes=("x", "y", "z"), loss=0.0)  # fmt: skip
    assert ranked(p, 0, 2) == [("y", 0.4), ("z", 0.4)] and ranked(p, 1, 2) == [] and ranked(p, 2, 2) == []


# --- what is read ---


def test_every_kind_of_input_gives_the_same_rows(
    folder: Path, tmp_path: Path, rows_of: Callable[..., Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, its files, two parquet files, a tar, a list by line, by NUL and from Windows; ids are the source's."""
    rows = rows_of([folder])
    files, expected = [folder / row["id"] for row in rows], [(row["predicted"], row["top"]) for row in rows]
    assert [(row["predicted"], row["top"]) for row in rows_of(files)] == expected
    assert [row["id"] for row in rows_of(files[:2])] == [str(file) for file in files[:2]]

    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    for name, part in (("test-0.parquet", images[:10]), ("test-1.parquet", images[10:])):
        pq.write_table(pa.table({"image": part}), tmp_path / name)
    rows = rows_of([tmp_path / "test-0.parquet", tmp_path / "test-1.parquet"])
    assert [(row["predicted"], row["top"]) for row in rows] == expected
    assert [row["id"] for row in rows] == [f"test/{file.name}" for file in files]
    with tarfile.open(tmp_path / "test.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    assert [(row["predicted"], row["top"]) for row in rows_of([tmp_path / "test.tar"])] == expected

    for separator in (b"\n", b"\0", b"\r\n"):
        (tmp_path / "list").write_bytes(b"".join(os.fsencode(file) + separator for file in files))
        with (tmp_path / "list").open() as listed:
            monkeypatch.setattr(sys, "stdin", listed)
            rows = rows_of(["-"])
        assert [(row["predicted"], row["top"]) for row in rows] == expected
        assert [row["id"] for row in rows] == [str(file) for file in files]


def test_the_image_column_of_another_table_can_be_named(
    folder: Path, tmp_path: Path, rows_of: Callable[..., Answers]
) -> None:
    """Also as messages print it, and also where the run has one of its own."""
    files = sorted(folder.iterdir())[:4]
    left, right = (
        [{"bytes": file.read_bytes(), "path": file.name} for file in order] for order in (files, files[::-1])
    )
    pq.write_table(pa.table({"left": left, "right": right}), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"image_column: the image column is not clear; name one of left, right"):
        rows_of([tmp_path / "test.parquet"])
    expected = [row["top"] for row in rows_of(files)]
    assert [row["top"] for row in rows_of([tmp_path / "test.parquet"], image_column="left")] == expected
    assert [row["top"] for row in rows_of([tmp_path / "test.parquet"], image_column="right")] == expected[::-1]
    own = tmp_path / "own"
    untrained(own, CLASSES, FRAME | {"image_column": "middle"}, NETWORK)
    with pytest.raises(ValueError, match="there is no column 'middle'; the columns are left, right"):
        predicted(own, [tmp_path / "test.parquet"], tmp_path / "out")
    predicted(own, [tmp_path / "test.parquet"], tmp_path / "out", image_column="left")
    assert len(read_parquet(tmp_path / "out" / "predictions.parquet").ids) == 4
    names = [f"class {row['predicted'].removeprefix('class ')}" for row in rows_of(files)]
    pq.write_table(pa.table({"left": left, "right": right, "label": names}), tmp_path / "labelled.parquet")
    options = EvaluateOptions(device="cpu", workers=0, image_column="left", tta=("none",))
    found = evaluate_images([str(own)], str(tmp_path / "labelled.parquet"), options, StopSignal())
    assert found is not None and found["accuracy"] == 1 and found["images"] == 4
    words = ["RUN", "x.parquet", "--data.image-column", "left"]
    assert [parse_command(name, words).image_column for name in ("predict", "evaluate", "explain")] == ["left"] * 3
    command = parse_command("export", ["RUN", "--to", "x", "--data.image-column", "left"])
    assert command.options.image_column == "left"


def test_what_cannot_be_read_keeps_its_row_with_the_reason(
    run: Path, folder: Path, tmp_path: Path, rows_of: Callable[..., Answers], capfd: pytest.CaptureFixture[str]
) -> None:
    good = sorted(folder.iterdir())[:3]
    (tmp_path / "half.jpg").write_bytes(good[0].read_bytes()[:2000])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "folder.jpg").mkdir()
    bad = [tmp_path / f"{name}.jpg" for name in ("half", "empty", "text", "folder", "missing")]
    paths = [good[0], *bad, good[1], good[2]]
    rows = rows_of(paths)
    assert [row["id"] for row in rows] == list(map(str, paths))
    assert [bool(row["error"]) for row in rows] == [False, *[True] * 5, False, False]
    assert [row["predicted"] for row in rows[1:6]] == [None] * 5 and not any(row["top"] for row in rows[1:6])
    assert "No such file" in rows[5]["error"] and "no regular file" in rows[4]["error"]
    assert "0 bytes" in rows[2]["error"] and "not an image" in rows[3]["error"]

    document = predicted(run, paths, tmp_path / "out")
    assert document["images"] == 8 and document["corrupt"] == 5
    assert "8 predictions in" in (printed := capfd.readouterr().err) and "5 could not be read" in printed
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "top.csv").read_text())))
    assert [row["error"] for row in table] == [row["error"] for row in rows]
    submitted = dict(list(csv.reader((tmp_path / "out" / "prediction.csv").read_text().splitlines()))[1:])
    assert len(submitted) == 8 and submitted["missing"] == "class 1"  # the run's most frequent class


def test_photos_of_kinds_that_are_not_read_get_rows_with_an_error(
    run: Path, folder: Path, tmp_path: Path, rows_of: Callable[..., Answers], capfd: pytest.CaptureFixture[str]
) -> None:
    """A phone's folder: 2 of 3 rows alone would look like all."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for file in sorted(folder.iterdir())[:2]:
        shutil.copy(file, photos)
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "notes.txt").write_text("x")
    for paths, count in (([photos], 3), ([photos / "IMG_1.HEIC"], 1), (sorted(photos.iterdir()), 4)):
        rows = {Path(row["id"]).name: row for row in rows_of(paths)}
        assert len(rows) == count and sum(not row["error"] for row in rows.values()) == (2 if count > 1 else 0)
        assert rows["IMG_1.HEIC"]["error"].endswith(": .heic is not read, convert it to JPEG or PNG")
        assert rows["IMG_1.HEIC"]["predicted"] is None
    document = predicted(run, [photos], tmp_path / "out")
    assert document["images"] == 3 and document["corrupt"] == 1
    assert "3 predictions in" in (shown := capfd.readouterr().err) and "1 could not be read" in shown


@pytest.mark.parametrize(
    ("paths", "top_k", "message"),
    [
        ([], 3, "there is nothing to predict"),
        (["-", "a.jpg"], 3, "give it alone"),
        (["a.jpg", "b.jpg", "a.jpg"], 3, "'a.jpg' is given twice, as path 1 and 3: pass them through sort -u"),
        (["a.jpg", "/"], 3, "a.jpg to / cannot be read together: name one folder"),
        (["runs/mistyped", "a.jpg"], 3, "there is no file or folder runs/mistyped"),
        (["a.parquet", "b.tar"], 3, "mixes .parquet and .tar files"),
        (["missing"], 3, "there is no file or folder missing"),
        (["a.jpg"], 0, "--top-k must be at least 1, found 0"),
    ],
)
def test_contradictory_arguments_are_rejected(run: Path, paths: list[str], top_k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predicted(run, paths, "-", top_k=top_k)


def test_a_file_is_no_folder_for_predictions(run: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    with pytest.raises(ValueError, match="is a file: name a folder"):
        predicted(run, [str(folder)], str(tmp_path / "mine.csv"))
    assert (tmp_path / "mine.csv").read_text() == "mine"


def test_an_empty_list_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_text("\n\n")
    with (tmp_path / "list").open() as listed, pytest.raises(ValueError, match="standard input has no paths"):
        monkeypatch.setattr(sys, "stdin", listed)
        read_list()


# --- processes, pipes and signals ---


@pytest.mark.integration
def test_a_pipe_and_two_processes_give_the_rows_of_one(
    run: Path, folder: Path, rows_of: Callable[..., Answers]
) -> None:
    """find | accelerate launch: two real gloo processes, one list, rows of the first one only."""
    listed = subprocess.run(["find", str(folder), "-name", "*.jpg", "-print0"], capture_output=True, check=True).stdout
    config = str(ROOT / "accelerate_configs" / "cpu.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    command += ["-m", "cls", "predict", str(run), "-", "--top-k", "3", "--workers", "1", "--tta", "flip"]
    done = subprocess.run(command, env=environment(), input=listed, capture_output=True, timeout=300)
    printed = done.stderr.decode()
    assert done.returncode == 0 and "29 predictions, by 2 processes" in printed, printed
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = [name.decode() for name in listed.split(b"\0") if name]
    assert [row["id"] for row in rows] == names and len(set(names)) == 29
    assert rows == rows_of(names, tta=views_of(("flip",)))


@pytest.mark.integration
def test_a_bar_on_the_terminal_leaves_the_rows_to_the_file(run: Path, folder: Path, tmp_path: Path) -> None:
    """Standard error is a terminal, standard output a file: as in ``cls predict RUN PATH --out - > rows.jsonl``."""
    command = [sys.executable, "-m", "cls", "predict", str(run), str(folder), "--out", "-", "--workers", "0"]
    terminal, end = pty.openpty()
    with (tmp_path / "rows.jsonl").open("wb") as rows:
        done = subprocess.Popen(command, env=environment(TERM="xterm"), stdin=end, stdout=rows, stderr=end)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert done.wait(60) == 0, shown
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 29
    assert b"\x1b[" in shown and b"29 predictions" in shown and b'"id"' not in shown


@pytest.mark.soak
def test_ctrl_c_keeps_the_rows_so_far(run: Path, folder: Path, tmp_path: Path) -> None:
    """400 rows of 450 bytes: more than a pipe holds, so that the process is in the middle while nobody reads."""
    files, names = sorted(folder.iterdir()), [str(tmp_path / f"{i}.jpg") for i in range(400)]
    for i, name in enumerate(names):
        os.link(files[i % 29], name)
    command = [sys.executable, "-m", "cls", "predict", str(run), "-", "--top-k", "7", "--workers", "0"]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("\n".join(names))
        process.stdin.close()
        lines = [process.stdout.readline() for _ in range(20)]  # the run is still far from its end
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
        printed = process.stderr.read()
    assert process.returncode == 85, printed
    rows = [json.loads(line) for line in lines]
    assert 20 <= len(rows) < 400 and [row["id"] for row in rows] == names[: len(rows)]
    assert "of 400 images were done" in printed and "Traceback" not in printed and "checkpoint" not in printed
    by_file: dict[int, list[Any]] = {}
    for i, row in enumerate(rows):
        by_file.setdefault(i % 29, []).append([item["class"] for item in row["top"]])
    assert all(orders.count(orders[0]) == len(orders) for orders in by_file.values())


class AtThird(StopSignal):
    """Asked to stop before the third batch."""

    asked = 0

    def requested(self) -> bool:
        self.asked += 1
        self.reason = "a test" if self.asked == 3 else ""
        return bool(self.reason)


def test_a_stopped_one_leaves_its_rows_in_the_folder_and_the_next_starts_anew(
    run: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Stopped):
        predicted(run, [folder], tmp_path, stop=AtThird())
    early = (tmp_path / "top.csv").read_text().splitlines()
    assert len(early) == 1 + 16 and "16 of 29 images were done" in capfd.readouterr().err
    assert not (tmp_path / "prediction.csv").exists()
    predicted(run, [folder], tmp_path)
    late = (tmp_path / "top.csv").read_text().splitlines()
    assert len(late) == 1 + 29 and late[:17] == early


def test_a_reader_that_leaves_stops_it(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``| head -1``, before anything is read."""
    reader, writer = os.pipe()
    os.close(reader)
    stop = StopSignal()
    with os.fdopen(writer, "w") as out, pytest.raises(Stopped, match="standard output was closed"):
        monkeypatch.setattr(sys, "stdout", out)
        predicted(run, [folder], "-", stop=stop)
    assert stop.reason == "standard output was closed"
