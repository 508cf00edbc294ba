import dataclasses
import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image
from safetensors.numpy import save_file

from cls import recipes
from cls.config import NO_VALIDATION, Run, Track, change
from cls.tracking.metrics_log import Mistake, best_row, read_rows, rewind
from cls.tracking.progress_bar import ProgressBar
from cls.tracking.tracker import Tracker, check_tracking
from cls.tracking.wandb_run import group_of, tags_of, wandb_mode
from tests.harness.records import wandb_records

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 2 + "fedcba98"  # shaped like a W&B key


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path_factory):
    """No key, no settings and no mode of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home))
    return home


def run(**track):
    return change(Run(), track={"wandb": "disabled"} | track, optim={"lr": 0.125})


def row(step, **values):
    return {"step": step, "epoch": 1 + step // 10, **values}


def inspect(folder):
    """The records of every W&B run file below a run directory, read by W&B's own reader."""
    return [wandb_records(file) for file in sorted((folder / "wandb").glob("*run-*/*.wandb"))]


def history(records):
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]


def elsewhere(code, *arguments, **env):
    """Run a program with the package in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, env=os.environ | env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip


def files_with(folder, secret):
    return [f for f in folder.rglob("*") if f.is_file() and secret.encode() in f.read_bytes()]


def test_offline_wandb(tmp_path):
    folder = tmp_path / "my run"
    tracker = Tracker(run(wandb="offline"), folder, info={"parameters": 1234})
    for step in range(1, 31):
        tracker.log(row(step, **{"train/loss": 1 / step, "train/lr": 1e-4}))
        if step % 10 == 0:
            tracker.log(row(step, **{"val/accuracy": step / 100}))
    hint = tracker.finish({"test/accuracy": 0.75}, 60)
    (records,) = inspect(folder)  # exactly one run
    logged = history(records)
    assert [r["global_step"] for r in logged if "train/loss" in r] == list(range(1, 31))
    assert [r["train/loss"] for r in logged if "train/loss" in r] == [1 / step for step in range(1, 31)]
    assert {r["global_step"]: r["val/accuracy"] for r in logged if "val/accuracy" in r} == {10: 0.1, 20: 0.2, 30: 0.3}
    assert len(logged) == 33
    (started,) = [r["run"] for r in records if r["type"] == "run"]
    assert started["run_id"] == (folder / "wandb_id").read_text()
    assert (started["project"], started["display_name"]) == ("cls", "my run")
    config = started["config"]["update"]
    assert config["optim"]["lr"] == 0.125 and config["parameters"] == 1234 and config["recipe"] == "digits"
    metrics = [r["metric"] for r in records if r["type"] == "metric"]
    assert {m.get("glob_name"): m.get("step_metric") for m in metrics}["*"] == "global_step"
    last = [r["summary"]["update"] for r in records if r["type"] == "summary"]
    assert any(update.get("test/accuracy") == 0.75 for update in last)
    # the hint is a command for a shell that names the one offline directory
    (offline,) = (folder / "wandb").glob("offline-run-*")
    assert hint == f"wandb sync '{offline}'"
    rows = read_rows(folder)
    assert len(rows) == 33 and rows[0].keys() == {"step", "epoch", "time", "train/loss", "train/lr"}
    assert abs(rows[-1]["time"] - time.time()) < 60


def summary(records):
    """What the page shows at its end."""
    found = {}
    for record in records:
        if record["type"] == "summary":
            found |= record["summary"].get("update", {})
    return found


def started(records):
    return next(record["run"] for record in records if record["type"] == "run")


def test_runs_are_grouped_by_configuration_without_the_seed(monkeypatch):
    base = change(recipes.get("mlp-head"), data={"path": "/data/photos"})
    group = group_of(base)
    assert group.startswith("mlp-head-") and len(group) == len("mlp-head-") + 8
    same = [change(base, seed=7), dataclasses.replace(base, out="runs/a"),
            change(base, data={"workers": 3, "copy": "/x"}),
            change(base, track={"wandb": "offline", "name": "mine"}, train={"device": "cpu", "keep": 9})]  # fmt: skip
    others = [change(base, optim={"lr": 0.5}), change(base, data={"path": "/data/other"}), change(base, recipe="best"),
              change(base, train={"max_steps": 20}), change(base, data={"hold_out": "1/5"})]  # fmt: skip
    assert {group_of(one) for one in same} == {group}
    assert len({group, *map(group_of, others)}) == 6
    assert group_of(Run()) == "digits-44136fa3"  # the same in every version: nothing is hashed but {}


@pytest.mark.parametrize(("path", "given", "tags"), [
    ("/data/photos/", "", ("best", "photos")),
    ("digits", "", ("best", "digits")),
    ("owner/name", "one, two,", ("best", "name", "one", "two")),
    ("best", "best", ("best",)),
    ("/", "", ("best", "/")),
    (f"/data/{'x' * 99}", "", ("best", "x" * 64)),
])  # fmt: skip
def test_tags_are_recipe_and_data(monkeypatch, path, given, tags):
    monkeypatch.setenv("WANDB_TAGS", given)
    assert tags_of(change(Run(), recipe="best", data={"path": path})) == tags


def test_continued_offline_run_is_complete(tmp_path):
    """And shows its best validation though it ends without results; of equal figures the first is the best."""
    config = change(run(wandb="offline"), data={"path": "digits"}, train={"best_on": "loss"})
    figures = {2: (0.5, 1.0), 4: (0.75, 0.5), 6: (0.5, 0.25), 7: (0.75, 0.25)}

    def log(tracker, step, loss):
        tracker.log(row(step, **{"train/loss": loss}))
        if step in figures:
            tracker.log(
                {"step": step, "epoch": step / 2, **dict(zip(("val/accuracy", "val/loss"), figures[step], strict=True))}
            )

    first = Tracker(config, tmp_path, info={})
    for step in range(1, 6):
        log(first, step, 1.0)
    first.finish({}, 60)
    rewind(tmp_path, 3)
    second = Tracker(config, tmp_path, info={})
    for step in range(4, 8):
        log(second, step, 2.0)
    hint = second.finish({}, 60)
    old, new = inspect(tmp_path)
    old, new = sorted((old, new), key=len)
    assert len({r["run"]["run_id"] for r in old + new if r["type"] == "run"}) == 1
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0), (7, 2.0)]
    assert [(r["global_step"], r["train/loss"]) for r in history(new) if "train/loss" in r] == expected
    assert [(r["step"], r["train/loss"]) for r in read_rows(tmp_path) if "train/loss" in r] == expected
    assert Path(hint.removeprefix("wandb sync ")).is_dir()
    for page, (step, accuracy, loss) in ((old, (4, 0.75, 0.5)), (new, (6, 0.5, 0.25))):
        best = {"best/step": step, "best/epoch": step / 2, "best/accuracy": accuracy, "best/loss": loss}
        assert {key: value for key, value in summary(page).items() if key.startswith("best")} == best
        assert (started(page)["run_group"], started(page)["tags"]) == (group_of(config), ["digits"])


def test_pictures(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "curves.png")
    tracker = Tracker(change(run(wandb="offline"), data={"hold_out": "none"}), tmp_path, info={})
    tracker.log(row(7))
    tracker.results({"curves": tmp_path / "curves.png"}, [], tmp_path / "model.safetensors")
    tracker.finish({}, 60)
    (records,) = inspect(tmp_path)
    assert summary(records)["validation"] == NO_VALIDATION and "best/step" not in summary(records)
    shown = [r for r in history(records) if any(key.startswith("curves") for key in r)]
    assert len(shown) == 1 and shown[0]["global_step"] == 7
    assert len(list((tmp_path / "wandb").glob("offline-*/files/media/images/curves*.png"))) == 1


def test_wrong_images_and_the_model_are_on_the_page(tmp_path):
    data = io.BytesIO()
    Image.new("RGB", (12, 8), "blue").save(data, "JPEG")
    names = ["<b>cat</b>", "dog"]
    header = {"classes": json.dumps(names), "statistics": json.dumps([[0.5] * 3, [0.25] * 3])}
    save_file({"w": np.zeros(3)}, tmp_path / "model.safetensors", header)
    mistakes = [Mistake(f"val/{i}.jpg", data.getvalue(), *names, 0.9 - i / 100) for i in range(70)]
    for artifact in ("auto", "always"):
        folder = tmp_path / artifact
        tracker = Tracker(run(wandb="offline", artifact=artifact), folder, info={})
        tracker.log(row(7))
        tracker.results({}, mistakes, tmp_path / "model.safetensors")
        tracker.finish({}, 60)
        (records,) = inspect(folder)
        (shown,) = [r for r in history(records) if any(key.startswith("wrong_images") for key in r)]
        assert shown["global_step"] == 7 and "table-file" in str(shown)
        (file,) = (folder / "wandb").glob("offline-*/files/media/table/wrong_images*.json")
        table = json.loads(file.read_text())
        assert table["columns"] == ["id", "picture", "true", "predicted", "probability"]
        assert [line[:1] + line[2:] for line in table["data"]] == [
            [wrong.id, *names, wrong.probability] for wrong in mistakes[:64]
        ]
        (kept,) = [r["artifact"] for r in records if r["type"] == "artifact" and r["artifact"]["type"] == "run_table"]
        (photo,) = [item for item in kept["manifest"]["contents"] if item["path"].endswith(".jpg")]  # all are the same
        with Image.open(photo["local_path"]) as image:
            assert image.size == (12, 8) and image.format == "JPEG"
        models = [r["artifact"] for r in records if r["type"] == "artifact" and r["artifact"]["type"] == "model"]
        assert len(models) == (artifact == "always")  # offline it is asked for
    facts = json.loads(models[0]["metadata"])
    assert facts["classes"] == names and facts["statistics"] == [[0.5] * 3, [0.25] * 3]
    assert facts["data"] == {"size": 224, "eval_frame": "center", "crop_pct": 0.875}


def test_a_home_that_cannot_be_written_costs_the_page_its_table_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "file"))
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "JPEG")
    (tmp_path / "curves.png").write_bytes(data.getvalue())
    tracker = Tracker(run(wandb="offline"), tmp_path / "run", info={})
    tracker.log(row(7))
    tracker.results({"curves": tmp_path / "curves.png"}, [Mistake("a", data.getvalue(), "x", "y", 0.5)], tmp_path)
    assert tracker.finish({"test/accuracy": 0.5}, 60)
    assert "W&B does not get the wrong images" in caplog.text and "WANDB_DATA_DIR" in caplog.text
    (records,) = inspect(tmp_path / "run")
    assert any("test/accuracy" in str(r) for r in records if r["type"] == "summary")
    assert sum("curves" in str(r) for r in history(records)) == 1


def test_killed_process_loses_no_row(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from cls.config import Run, change
from cls.tracking.tracker import Tracker
tracker = Tracker(change(Run(), track={"wandb": "disabled"}), Path(sys.argv[1]), info={})
for step in range(1, 201):
    tracker.log({"step": step, "epoch": 1, "train/loss": step / 7})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert elsewhere(code, tmp_path).returncode == -signal.SIGKILL
    assert [(r["step"], r["train/loss"]) for r in read_rows(tmp_path)] == [(s, s / 7) for s in range(1, 201)]


def test_resume_moves_rows_beyond_the_step(tmp_path):
    def live(start, steps):
        rewind(tmp_path, start)
        tracker = Tracker(run(), tmp_path, info={})
        for step in steps:
            tracker.log(row(step, **{"train/loss": float(start)}))
        tracker.finish({}, 60)

    live(0, range(1, 11))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 11, "train/lo')  # the power failed here
    assert len(read_rows(tmp_path)) == 10
    live(6, range(7, 13))
    live(8, [9])
    kept = [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0), (7, 6), (8, 6), (9, 8)]
    assert [(r["step"], r["train/loss"]) for r in read_rows(tmp_path)] == kept
    lost = [json.loads(line) for line in (tmp_path / "metrics.lost.jsonl").read_text().splitlines()]
    beyond = [(7, 0), (8, 0), (9, 0), (10, 0), (9, 6), (10, 6), (11, 6), (12, 6)]
    assert [(r["step"], r["train/loss"]) for r in lost] == beyond


def test_the_best_validation_is_the_one_whose_weights_are_kept():
    def validated(step, epoch, accuracy):
        return {"step": step, "epoch": epoch, "val/accuracy": accuracy, "val/loss": 1 - accuracy}

    def best(rows):
        found = {best_row(rows, by)["step"] for by in ("accuracy", "loss")}
        assert len(found) == 1
        return found.pop()

    inside = [validated(2, 0, 0.9), validated(3, 0, 0.8)]  # smoke runs: the last weights are kept
    assert best(inside) == 3 and best(inside[:1]) == 2
    ends = [*inside, validated(10, 1, 0.5), validated(20, 2, 0.6), validated(25, 2, 0.7), validated(30, 3, 0.6)]
    assert best(ends[:3]) == 10 and best(ends) == 20
    assert best([*ends, validated(35, 3.5, 0.65)]) == 35  # the end of the run
    assert best_row([{"step": 1, "epoch": 1, "train/loss": 1.0}], "loss") is None


def test_not_a_number_is_valid_json(tmp_path):
    tracker = Tracker(run(), tmp_path, info={})
    tracker.log(row(1, **{"val/loss": math.nan, "train/loss": math.inf, "val/accuracy": 0.5}))
    tracker.finish({}, 60)

    def refuse(constant):
        raise AssertionError(constant)

    raw = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert raw["val/loss"] is None and raw["train/loss"] is None and raw["val/accuracy"] == 0.5
    (back,) = read_rows(tmp_path)
    assert math.isnan(back["val/loss"]) and back["step"] == 1


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is not JSON"):
        read_rows(tmp_path)
    assert read_rows(tmp_path / "nowhere") == []


UNREACHABLE = """
import logging, sys
from pathlib import Path
from cls.tracking import tracker as trackers, wandb_run as page
from cls.config import Run, change
logging.basicConfig(format="%(message)s")
page.INIT_SECONDS = 2
tracker = trackers.Tracker(change(Run(), track={"wandb": "auto"}), Path(sys.argv[1]), info={})
for step in range(1, 4):
    tracker.log({"step": step, "epoch": 1, "train/loss": 0.5})
print(tracker.finish({}, 60))
"""


@pytest.mark.integration
def test_unreachable_server_means_offline_and_the_key_stays_secret(tmp_path):
    begin = time.monotonic()
    done = elsewhere(UNREACHABLE, tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 30
    assert done.stderr.count("W&B cannot be reached, logging offline") == 1
    assert done.stdout.startswith("wandb sync /")
    assert len(read_rows(tmp_path)) == 3
    rows = [history(records) for records in inspect(tmp_path)]
    assert sorted(map(len, rows))[-1] == 3
    assert list(tmp_path.rglob("*.wandb"))
    assert files_with(tmp_path, KEY) == []
    assert KEY not in done.stdout + done.stderr


def test_secret_in_the_configuration_is_not_sent(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    config = change(run(wandb="offline"), data={"path": "https://me:hf_abcdefghij@host/set"})
    tracker = Tracker(config, tmp_path, info={})
    tracker.log(row(1))
    assert tracker.finish({}, 60) == ""
    assert "HF_TOKEN" in caplog.text and "hf_abc" not in caplog.text
    assert len(read_rows(tmp_path)) == 1
    assert files_with(tmp_path, "hf_abcdefghij") == []


def test_unwritable_mirrors_do_not_stop_training(tmp_path, caplog):
    for name in ("wandb", "tensorboard"):
        (tmp_path / name).write_text("a file where a folder should be")
    tracker = Tracker(run(wandb="offline", tensorboard=True), tmp_path, info={})
    for step in (1, 2, 3):
        tracker.log(row(step, **{"train/loss": 1.0}))
    tracker.results({"curves": tmp_path / "not there.png"}, [], tmp_path / "model.safetensors")
    tracker.finish({"test/accuracy": 1.0}, 60)
    assert len(read_rows(tmp_path)) == 3
    warnings = [r.getMessage() for r in caplog.records if r.name == "cls"]
    assert sorted(w.partition(" failed")[0] for w in warnings) == ["TensorBoard", "W&B"]


def test_failure_while_running_is_warned_of_once(tmp_path, caplog):
    tracker = Tracker(run(wandb="offline"), tmp_path, info={})
    tracker.results({"curves": tmp_path / "not there.png"}, [], tmp_path / "model.safetensors")
    tracker.log(row(1, **{"train/loss": 1.0}))
    assert tracker.finish({}, 60) == ""
    assert len(read_rows(tmp_path)) == 1
    assert [r.getMessage() for r in caplog.records if "W&B failed" in r.getMessage()] != []
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING and r.name == "cls"]) == 1


def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = Tracker(run(tensorboard=True), tmp_path, info={})
    for step in range(1, 6):
        first.log(row(step, **{"train/loss": 1.0}))
    first.finish({}, 60)
    time.sleep(1.1)  # event files are ordered by a name in whole seconds
    rewind(tmp_path, 3)
    second = Tracker(run(tensorboard=True), tmp_path, info={})
    for step in range(4, 7):
        second.log(row(step, **{"train/loss": 2.0}))
    second.log(row(6, **{"val/accuracy": 0.25}))
    second.finish({"test/accuracy": 0.5}, 60)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0),
    ]  # fmt: skip
    assert [(e.step, e.value) for e in events.Scalars("val/accuracy")] == [(6, 0.25)]
    assert [e.value for e in events.Scalars("summary/test/accuracy")] == [0.5]
    walltimes = [e.wall_time for e in events.Scalars("train/loss")]
    assert walltimes == [r["time"] for r in read_rows(tmp_path) if "train/loss" in r]


@pytest.mark.parametrize(
    ("configured", "asked", "mode"),
    [
        ("auto", "", "offline"),
        ("auto", "online", "online"),
        ("auto", "disabled", "disabled"),
        ("auto", "dryrun", "offline"),
        ("disabled", "online", "disabled"),
        ("online", "offline", "online"),
    ],
)
def test_wandb_mode(configured, asked, mode, monkeypatch):
    if asked:
        monkeypatch.setenv("WANDB_MODE", asked)
    assert wandb_mode(Track(wandb=configured)) == mode


@pytest.mark.integration
def test_auto_is_online_when_a_key_is_known(nobody):
    code = "from cls.config import Track; from cls.tracking.tracker import wandb_mode; print(wandb_mode(Track()))"
    assert elsewhere(code).stdout == "offline\n"
    assert elsewhere(code, WANDB_API_KEY=KEY).stdout == "online\n"
    (nobody / "netrc").write_text(f"machine wandb.example\n  login user\n  password {KEY}\n")
    assert elsewhere(code, WANDB_BASE_URL="https://wandb.example").stdout == "online\n"
    assert elsewhere(code, WANDB_BASE_URL="https://other.example").stdout == "offline\n"


def test_check_tracking(monkeypatch):
    check_tracking(Track())
    check_tracking(Track(tensorboard=True, wandb="disabled"))
    with pytest.raises(ValueError, match=r"track\.wandb is online.*wandb login.*track\.wandb offline"):
        check_tracking(Track(wandb="online"))
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ValueError, match="WANDB_MODE must be online, offline or disabled, found 'onlin'"):
        check_tracking(Track())
    code = "from cls.config import Track; from cls.tracking.tracker import check_tracking; check_tracking(Track())"
    monkeypatch.delenv("WANDB_MODE")
    if "prompt" in signature(wandb.login).parameters:  # older versions look at a key only when a run begins
        assert "ValueError: W&B: WANDB_API_KEY invalid" in elsewhere(code, WANDB_API_KEY="short").stderr
    assert "ValueError: W&B: 1 validation error" in elsewhere(code, WANDB_MODE="").stderr  # W&B's own settings


def test_tensorboard_missing(tmp_path):
    # the real import system without the package: an import path with everything else
    code = """
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "tensorboard" else PathFinder.find_spec(name, path, target)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from cls.config import Track
from cls.tracking.tracker import check_tracking
check_tracking(Track(tensorboard=True, wandb="disabled"))
"""
    done = elsewhere(code)
    assert "ValueError: track.tensorboard is on" in done.stderr and "pip install 'cls[tensorboard]'" in done.stderr


def test_progress_in_plain_lines(capsys, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = ProgressBar(1080, 100, epochs=15)
    for step in range(101, 163):
        figures = {"epoch": 2, "train/loss": 0.41234, "train/lr": 9.8e-5, "train/images_per_second": 310.4}
        progress.step(step, row(step) | figures if step % 10 == 0 else {})
        clock[0] += 1.0
    progress.line("epoch 2/15  val accuracy 0.9120")
    progress.close()
    out = capsys.readouterr()
    assert out.err == ""
    assert out.out.splitlines() == [
        "step 101/1080",  # a heartbeat
        "step 131/1080  epoch 2/15  loss 0.412  lr 9.8e-05  310 img/s  ETA 0:15:49",
        "step 161/1080  epoch 2/15  loss 0.412  lr 9.8e-05  310 img/s  ETA 0:15:19",  # 919 steps at 1 s
        "epoch 2/15  val accuracy 0.9120",
    ]


def test_progress_on_a_terminal(tmp_path):
    pty = pytest.importorskip("pty")
    code = """
import time
from cls.tracking.progress_bar import ProgressBar
progress = ProgressBar(50, 0, epochs=2)
for step in range(1, 51):
    progress.step(step, {"epoch": 1 + step // 26, "train/loss": 1 / step})
    time.sleep(0.02)
    if step == 25:
        progress.line("epoch 1/2  val accuracy 0.5")
progress.close()
"""
    parent, child = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=out, stderr=child)
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # Linux reports the end of a terminal as EIO
        pass
    os.close(parent)
    assert process.wait() == 0
    assert (tmp_path / "out").read_text() == "epoch 1/2  val accuracy 0.5\n"  # the log of a piped run is clean
    text = shown.decode()
    assert "/50" in text and "epoch 2/2" in text and "ETA 0:00:0" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is given back
