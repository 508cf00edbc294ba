"""A signal, a stop-file or the job's end stops all ranks at one step with a checkpoint, and the run resumes from it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cls.commands.audit import audit
from cls.config import Data
from cls.data.readers import images_of
from cls.data.sources import load
from cls.tracking.events import read_events
from tests.harness import ROOT, TINY, environment
from tests.harness.records import Result, bits, saved
from tests.harness.runs import Runs, free_port

pytestmark = pytest.mark.integration

STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("signals")


def check_stopped(ended: Result, world: int, reason: str, step: int, validated: int | None = None) -> None:
    """``validated``: of the newest checkpoint, which is of ``step``; None where there is no checkpoint yet."""
    assert ended.codes == [85] * world, ended.output
    assert ended.exit == {"outcome": "stopped", "code": 85, "reason": reason, "step": step}
    assert f"stopped: {reason}" in ended.output and "Traceback" not in ended.output
    assert (saved(ended.out)[-1:] == [(step, validated)]) if validated is not None else saved(ended.out) == []
    assert not (ended.out / "lock").exists() and not list(ended.out.rglob(".*.tmp"))


def check_continued(runs: Runs, stopped: Result, tiny: Result, world: int) -> Result:
    step = stopped.exit["step"]
    ended = runs.run(stopped.out, TINY, world)
    assert ended.codes == [0] * world and ended.exit["outcome"] == "done", ended.output
    assert f"{world} process(es)" in ended.output and f"step {step} of {STEPS} ->" in ended.output
    assert bits(ended) == bits(tiny)
    return ended


# moment on rank 1, which carries two micro-batches of a step: (step, last validation) of the newest checkpoint. The
# request travels with the step in which it arrives and is read one step later; a validation is begun but not finished.
MOMENTS: dict[str, tuple[int, int | None]] = {
    "micro:2": (2, 0),
    "step:6": (7, 5),
    "step:4": (5, 3),
    "update:5": (5, 3),
    "evaluation:2": (5, 3),
    "build:1": (0, None),
    "results:1": (8, 8),
    "evaluation:4": (8, 8),  # the final predictions
}
REPRESENTATIVES = ("micro:2", "evaluation:2", "evaluation:4")


def stop_and_go_on(runs: Runs, folder: Path, tiny: Result, moment: str, name: str) -> None:
    out = folder / f"{name}-{moment.replace(':', '-')}"
    stopped = runs.run(out, TINY, 2, f"{name}@1:{moment}")
    assert stopped.faults == [moment.split(":")[0]]
    check_stopped(stopped, 2, name, *MOMENTS[moment])
    check_continued(runs, stopped, tiny, 2)


@pytest.mark.parametrize("moment", [pytest.param(REPRESENTATIVES[0], marks=pytest.mark.promise), *REPRESENTATIVES[1:]])
def test_a_signal_to_one_rank_stops_all(runs: Runs, folder: Path, tiny: Result, moment: str) -> None:
    stop_and_go_on(runs, folder, tiny, moment, "SIGTERM")


@pytest.mark.soak
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_each_signal_at_each_moment(runs: Runs, folder: Path, tiny: Result, moment: str, name: str) -> None:
    if (moment, name) not in [(moment, "SIGTERM") for moment in REPRESENTATIVES]:
        stop_and_go_on(runs, folder, tiny, moment, name)


def test_a_stop_among_the_results_of_a_later_attempt_saves_no_best_weights(
    runs: Runs, folder: Path, tiny: Result
) -> None:
    """The network then has the best weights, with which the last step's optimizer must not be saved."""
    out, words = folder / "later-results", [*TINY, "--train.max-steps", "5"]
    for _ in range(2):
        stopped = runs.run(out, words, 1, "SIGTERM@0:results:1")
        assert stopped.codes == [85] and stopped.exit["step"] == 5, stopped.output
        assert saved(out)[-1] == (5, 5) and len({step for step, _ in saved(out)}) == len(saved(out))
    ended = runs.run(out, TINY)
    assert ended.codes == [0] and bits(ended) == bits(tiny), ended.output
    again = runs.run(out, words)  # fewer steps than are done
    assert again.codes == [0] and again.exit["step"] == STEPS and bits(again) == bits(tiny), again.output


@pytest.mark.parametrize("moment", ["between files:2", pytest.param("before rename:1", marks=pytest.mark.soak)])
def test_a_signal_while_a_checkpoint_is_written(runs: Runs, folder: Path, tiny: Result, moment: str) -> None:
    """The writing thread continues: the checkpoint that it had begun is finished, and the stop's own comes after it."""
    stopped = runs.run(folder / moment.replace(" ", "-").replace(":", "-"), TINY, 2, f"SIGTERM@0:{moment}")
    step = stopped.exit["step"]
    assert step in (4, 5)  # 3 was being saved, behind the steps; one of the two is read at the end of an epoch
    check_stopped(stopped, 2, "SIGTERM", step, 3)
    assert (3, 3) in saved(stopped.out)
    check_continued(runs, stopped, tiny, 2)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("SIGTERM@0:micro:5;SIGTERM@0:micro:6;SIGTERM@0:feed:8", marks=pytest.mark.soak),
        "SIGTERM@0:micro:5;SIGINT@0:micro:5",
    ],
)
def test_requests_on_top_of_each_other_are_one(runs: Runs, folder: Path, tiny: Result, fault: str) -> None:
    stopped = runs.run(folder / f"twice-{fault.count('INT')}", TINY, 1, fault)
    assert len(stopped.faults) == len(fault.split(";"))
    check_stopped(stopped, 1, "SIGTERM", 3, 0)  # received in step 2, read after step 3, which an epoch ends with
    check_continued(runs, stopped, tiny, 1)


def test_a_second_ctrl_c_leaves_within_a_micro_batch(runs: Runs, folder: Path, tiny: Result) -> None:
    """The step is given up after its third micro-batch of four; the checkpoint is of the step before, buffers too."""
    fault = "SIGINT@0:micro:5;SIGINT@0:micro:7"
    stopped = runs.run(folder / "second", TINY, 1, fault, HARNESS_SET='{"cls.runtime.signals.ECHO_SECONDS": 0.0}')
    assert stopped.faults == ["micro", "micro"]
    check_stopped(stopped, 1, "SIGINT", 1, 0)
    assert [row["step"] for row in stopped.rows] == [1]
    check_continued(runs, stopped, tiny, 1)


@pytest.mark.soak
def test_a_second_ctrl_c_on_one_rank_of_two_leaves_no_process(runs: Runs, folder: Path, tiny: Result) -> None:
    """The other rank may wait for it in vain: what counts is that both end and the run resumes."""
    fault = "SIGINT@0:micro:3;SIGINT@0:micro:4"
    stopped = runs.run(
        folder / "second-of-two", TINY, 2, fault, HARNESS_SET='{"cls.runtime.signals.ECHO_SECONDS": 0.0}'
    )
    assert stopped.codes[0] == 85 and stopped.codes[1] != 0
    assert stopped.exit["outcome"] == "stopped" and saved(stopped.out) == [(1, 0)]
    check_continued(runs, stopped, tiny, 2)


@pytest.mark.parametrize(
    ("fault", "world"), [("SIGTERM@0:micro:3", 1), ("SIGTERM@1:micro:1", 2), ("SIGINT@0:micro:7;SIGINT@0:micro:9", 1)]
)
def test_corrupt_images_are_counted_over_a_stop(
    runs: Runs, tmp_path: Path, photos: Path, fault: str, world: int
) -> None:
    """The next attempt begins after the draws that found the first one, and skips it: of two, one is allowed."""
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    words = [*TINY, "--data.limit", "0", "--data.path", str(data), "--data.size", "32", "--train.epochs", "1"]
    images = images_of(load(Data(path=str(data)), 0).train)
    order = images.sampler(0, False)
    for draw in (1, 46):  # of 48: in the first step, by rank 0, and in the last
        (data / images.name(order.row(draw))).write_bytes(b"corrupt")
    stopped = runs.run(tmp_path / "run", words, world, fault, HARNESS_SET='{"cls.runtime.signals.ECHO_SECONDS": 0.0}')
    check_stopped(stopped, world, fault.partition("@")[0], 2, 0)
    ended = runs.run(tmp_path / "run", words, world)
    assert ended.codes == [3] * world and "2 of 48 training images are corrupt" in ended.output
    repaired = data / images.name(order.row(1))
    repaired.write_bytes(next(path for path in repaired.parent.iterdir() if path != repaired).read_bytes())
    ended = runs.run(tmp_path / "run", words, world)  # the same command, as the message says
    assert ended.codes == [0] * world, ended.output
    assert len((tmp_path / "run" / "corrupt_images.csv").read_text().splitlines()) == 3
    assert audit(tmp_path / "run", 48, 16, balanced=False)["problems"] == []


def test_a_stop_file_stops_all_ranks(runs: Runs, folder: Path, tiny: Result) -> None:
    out = folder / "stop-file"
    command = {"TOUCH": f"touch {out}/stop", "HARNESS_SET": '{"cls.runtime.signals.LOOK_SECONDS": 0.0}'}
    stopped = runs.run(out, TINY, 2, "$TOUCH@1:step:1", **command)
    assert stopped.exit["step"] in (2, 3)  # rank 0 looks after the file is there, or once before
    check_stopped(stopped, 2, f"{out}/stop exists", stopped.exit["step"], 0)
    check_continued(runs, stopped, tiny, 2)


def run_in_a_job(runs: Runs, out: Path, seconds: int, **args: str) -> tuple[Result, int, int]:
    """A run of ten thousand epochs in a job that ends soon: how it ended, seconds left as it began to and after."""
    end = int(time.time()) + seconds
    words = [*TINY, "--train.epochs", "10000", "--track.ledger", "False", *args.values()]
    small = json.dumps({"cls.runtime.signals.SPARE_SECONDS": 0.0, "cls.runtime.signals.LOOK_SECONDS": 0.0})
    stopped = runs.run(out, words, 2, HARNESS_SET=small, SLURM_JOB_END_TIME=str(end))
    left = int(end - time.time())
    reason = re.fullmatch(r"the job ends in (\d+) seconds", stopped.exit["reason"])
    assert reason, stopped.exit
    return stopped, int(reason[1]), left


def test_the_jobs_end_stops_a_long_run_in_time(runs: Runs, folder: Path) -> None:
    """No checkpoint has been written yet, so each is taken to last 30 seconds; the epoch is longer than the job."""
    stopped, asked, left = run_in_a_job(runs, folder / "job", 62, limit="--data.limit=0")
    assert 0 < left <= asked <= 63  # 3 times the longest step comes on top of 60
    check_stopped(stopped, 2, stopped.exit["reason"], stopped.exit["step"], 0)
    assert stopped.exit["step"] >= 2


@pytest.mark.soak
def test_a_run_stays_longer_once_it_knows_how_long_a_checkpoint_takes(runs: Runs, folder: Path) -> None:
    stopped, asked, left = run_in_a_job(runs, folder / "long-job", 75)
    assert 0 <= left <= asked < 30 and stopped.exit["step"] > 20
    check_stopped(stopped, 2, stopped.exit["reason"], stopped.exit["step"], saved(stopped.out)[-1][1])


# --- the real launchers ---

LONG = [*TINY, "--train.epochs", "10000", "--track.ledger", "False"]


def launcher(kind: str, processes: int) -> list[str]:
    if kind == "torchrun":
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={processes}",
            "--master_port",
            str(free_port()),
        ]
    config = ["--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml"), "--num_processes", str(processes)]
    return [sys.executable, "-m", "accelerate.commands.launch", *config, "--main_process_port", str(free_port())]


def trainers(out: Path) -> list[int]:
    """Processes that train into this directory, launchers left out; a zombie has no command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(out) in words and "-m" not in words:
            found.append(int(entry.name))
    return found


def launched_and_stopped(out: Path, kind: str, processes: int, number: signal.Signals, **env: str) -> tuple[int, str]:
    """Start a run that would not end, signal the launcher alone once two epochs are over, wait until all have ended."""
    log = out.with_suffix(".log")
    command = [*launcher(kind, processes), str(ROOT / "train.py"), *LONG, "--out", str(out)]
    with log.open("w") as file:
        started = subprocess.Popen(
            command, env=environment(**env), stdout=file, stderr=file, cwd=out.parent, start_new_session=True
        )
        try:
            while '"step": 7' not in (metrics.read_text() if (metrics := out / "metrics.jsonl").exists() else ""):
                assert started.poll() is None, log.read_text()
                time.sleep(0.05)
            assert len(trainers(out)) == processes
            started.send_signal(number)
            code = started.wait(timeout=120)
            since = time.monotonic()
            while trainers(out):
                assert time.monotonic() - since < 120, log.read_text()
                time.sleep(0.05)
        finally:
            for pid in [started.pid, *trainers(out)]:
                if pid != started.pid or started.poll() is None:
                    os.kill(pid, signal.SIGKILL)
            started.wait()
    return code, log.read_text()


ALL_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
LAUNCHES = [
    (kind, processes, name)
    for kind, processes in (("accelerate", 1), ("accelerate", 2), ("torchrun", 2))
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGKILL")
    if (processes, name) != (1, "SIGUSR1")  # one process has no torchrun above it that could pass SIGUSR1 on
]
LAUNCH_SLICE = [("accelerate", 2, "SIGTERM"), ("accelerate", 1, "SIGINT")]


def check_launched(folder: Path, kind: str, processes: int, name: str) -> None:
    out = folder / f"{kind}-{processes}-{name}"
    code, output = launched_and_stopped(
        out, kind, processes, signal.Signals[name], PET_SIGNALS_TO_HANDLE=ALL_SIGNALS, PET_SHUTDOWN_TIMEOUT="60"
    )
    record = json.loads((out / "exit.json").read_text())
    assert code != 0 and (record["outcome"], record["code"]) == ("stopped", 85), output
    # torchrun passes each signal on as what it has been sent
    assert record["reason"] == ("the launcher has ended" if name == "SIGKILL" else name), output
    assert saved(out)[-1][0] == record["step"] >= 7
    assert "cls/" not in "".join(line for line in output.splitlines() if line.strip().startswith("File ")), output
    assert not (out / "lock").exists() and [event["event"] for event in read_events(out)][-1] == "end"
    assert [event["processes"] for event in read_events(out) if event["event"] == "start"] == [processes]


@pytest.mark.parametrize(("kind", "processes", "name"), LAUNCH_SLICE)
def test_launchers_pass_a_request_on(folder: Path, kind: str, processes: int, name: str) -> None:
    check_launched(folder, kind, processes, name)


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "processes", "name"), [launch for launch in LAUNCHES if launch not in LAUNCH_SLICE])
def test_every_launcher_and_signal(folder: Path, kind: str, processes: int, name: str) -> None:
    check_launched(folder, kind, processes, name)
