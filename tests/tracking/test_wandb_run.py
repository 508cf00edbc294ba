"""The W&B page of a run that is killed, and of one whose W&B server never answers: real processes, real W&B."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cls.tracking.events import read_events
from cls.tracking.goodput import PARTS, attempts, total
from cls.tracking.metrics_log import best_row
from tests.harness import ROOT, SMALL, environment
from tests.harness.records import timeless, wandb_records
from tests.harness.runs import Runs

pytestmark = pytest.mark.integration

KEY = "0123456789abcdef" * 2 + "fedcba98"  # shaped like a W&B key
OFFLINE = [*SMALL, "--track.wandb", "offline", "--train.save-minutes", "0.002"]
STEPS = 22


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    home = tmp_path_factory.mktemp("home")
    own = {f"WANDB_{name}_DIR": str(home) for name in ("CONFIG", "CACHE", "DATA")}
    with Runs(NETRC=str(home / "netrc"), **own) as found:
        yield found


def test_three_kills_leave_one_complete_page(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for count in (6, 5, 4):
        killed = runs.run(out, OFFLINE, 1, f"SIGKILL@0:step:{count}")
        assert killed.codes == [-9], killed.output
    ended = runs.run(out, OFFLINE, 2)
    assert ended.codes == [0, 0], ended.output
    pages = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    assert len(pages) == 4
    waiting = [file for file in pages if not file.with_suffix(".wandb.synced").exists()]
    assert len(waiting) == 1 and f"wandb sync {waiting[0].parent}" in ended.output  # `wandb sync --sync-all` sends one
    assert {file.stem for file in pages} == {f"run-{(out / 'wandb_id').read_text()}"}
    records = wandb_records(waiting[0])
    shown = [record["history"]["item"] for record in records if record["type"] == "history"]
    steps = [item["global_step"] for item in shown]
    assert steps == sorted(steps)
    results = [item for item in shown if "curves" in str(item) or "wrong_images" in str(item)]
    sent = [{k: v for k, v in item.items() if not k.startswith("_")} for item in shown if item not in results]
    assert len(results) == 2
    kept = [{("global_step" if k == "step" else k): v for k, v in row.items() if k != "time"} for row in ended.rows]
    assert sent == kept and [item["global_step"] for item in sent if "train/loss" in item] == list(range(1, STEPS + 1))
    (started,) = [record["run"] for record in records if record["type"] == "run"]
    best = best_row(ended.rows, "accuracy")
    updates = [record["summary"].get("update", {}) for record in records if record["type"] == "summary"]
    final = {key: value for update in updates for key, value in update.items()}
    assert best and (final["best/accuracy"], final["best/step"]) == (best["val/accuracy"], best["step"])
    assert started["run_group"].startswith("digits-") and started["tags"] == ["digits"]
    table = attempts(read_events(out))
    lost = [attempt["lost_steps"] for attempt in table]
    assert started["config"]["update"]["attempts"] == 4 and started["config"]["update"]["lost_steps"] == sum(lost)
    assert started["config"]["update"]["device"] == "CPU" and started["config"]["update"]["processes"] == 2
    assert [attempt["outcome"] for attempt in table] == ["killed", "killed", "killed", "done"]
    gone = [json.loads(line) for line in (out / "metrics.lost.jsonl").read_text().splitlines()]
    assert sum(lost) == sum("train/loss" in row for row in gone)


def test_goodput_accounts_for_all_the_time_there_was(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rare = [*SMALL, "--train.save-minutes", "0"]  # checkpoints at the ends of epochs only: steps get lost
    killed = runs.run(out, rare, 1, "SIGKILL@0:step:12")
    assert killed.codes == [-9], killed.output
    ended = runs.run(out, rare)
    assert ended.codes == [0], ended.output
    first, second = attempts(read_events(out))
    assert first["steps"] == second["step"] and first["steps"] in (7, 10)  # 100 images, 32 a step: epochs end there
    assert first["lost_steps"] == 10 - first["steps"] or first["lost_steps"] == 11 - first["steps"]
    assert (first["seconds"]["lost"] > 0) == (first["lost_steps"] > 0)
    assert second["steps"] == STEPS - second["step"] and second["lost_steps"] == 0
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    (end,), (start,) = ([e for e in events if e["attempt"] == 1 and e["event"] == name] for name in ("end", "start"))
    assert sum(second["seconds"].values()) == pytest.approx(end["time"] - start["began"], abs=1.0)
    assert second["seconds"]["other"] < 1.0 and min(second["seconds"][k] for k in ("compute", "evaluation")) > 0
    whole = total([first, second])
    assert whole["steps"] == STEPS and whole["repeated_steps"] == first["lost_steps"]
    assert whole["seconds"] == {
        part: round(first["seconds"][part] + second["seconds"][part], 3) for part in PARTS
    } and whole["goodput"] == pytest.approx(whole["seconds"]["compute"] / sum(whole["seconds"].values()), abs=1e-3)
    validated = [row for row in ended.rows if "val/accuracy" in row]
    assert all(0 < row["time/goodput"] < 1 and row["time/slowest_rank"] == 0 for row in validated)


def test_the_slow_rank_is_named(runs: Runs, tmp_path: Path) -> None:
    """Rank 1 waits 6 s in all, more than what a busy machine takes from rank 0 meanwhile."""
    ended = runs.run(tmp_path / "run", SMALL, 2, ";".join(f"$NAP@1:forward:{n}" for n in range(2, 12)), NAP="sleep 0.6")
    assert ended.codes == [0, 0], ended.output
    last = [row for row in ended.rows if "val/accuracy" in row][-1]
    assert last["time/slowest_rank"] == 1 and last["time/slowest_longer"] > 0.5
    assert attempts(read_events(tmp_path / "run"))[0]["slowest_rank"] == 1


def test_a_server_that_never_answers_holds_nothing_up(runs: Runs, tmp_path: Path) -> None:
    """It takes connections and says nothing; the run is over long before W&B's 90 seconds are."""
    plain = runs.run(tmp_path / "plain", SMALL)
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        slow = {"cls.tracking.wandb_run.INIT_SECONDS": 90, "cls.training.logger.FINISH_SECONDS": 2}
        ended = runs.run(
            tmp_path / "run", [*SMALL, "--track.wandb", "online"], 2,
            WANDB_API_KEY=KEY, WANDB_BASE_URL=url, HARNESS_SET=json.dumps(slow),
        )  # fmt: skip
    assert ended.codes == [0, 0] and plain.codes == [0], ended.output
    assert "W&B took longer than 2 seconds to end" in ended.output
    assert timeless(ended.rows) == timeless(plain.rows) and ended.exit["outcome"] == "done"
    assert ended.seconds < 60
    assert KEY not in ended.output


@pytest.mark.soak
def test_nor_does_it_hold_up_the_end_of_a_single_process(tmp_path: Path) -> None:
    """W&B's own exit would wait for its upload without end; this process leaves as a user's does, not by _exit."""
    program = "import sys, cls.training.logger, train; cls.training.logger.FINISH_SECONDS = 2\ntrain.main(sys.argv[1:])"
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", program, *SMALL, "--track.wandb", "online", "--out", str(tmp_path / "run")],
            env=environment(WANDB_API_KEY=KEY, WANDB_BASE_URL=url, PYTHONPATH=str(ROOT), WANDB_DIR=str(tmp_path)),
            capture_output=True, text=True, timeout=120, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0 and "W&B took longer than 2 seconds" in done.stderr, done.stderr
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["outcome"] == "done"


def test_ctrl_c_ends_the_wait_for_an_upload(tmp_path: Path) -> None:
    """Training is over and all is on the disk: the two minutes that an upload may take are not what one waits for."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *SMALL, "--track.wandb", "online", "--out", str(tmp_path / "run")],
            env=environment(WANDB_API_KEY=KEY, WANDB_BASE_URL=url, WANDB_DIR=str(tmp_path)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("best validation accuracy"):
                break
        time.sleep(2)
        since = time.monotonic()
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
        assert process.wait(60) == 0 and time.monotonic() - since < 10, said
    assert "SIGINT: stopping after what has been uploaded so far" in said and "W&B took longer than" in said
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["outcome"] == "done"
