"""Loader processes: forked once, by a program without threads; they ignore signals and end with their owner."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cls.commands.options import PackOptions
from cls.commands.pack import pack
from cls.data.workers import WorkerDied, Workers, in_order
from cls.runtime.exit import DataError
from cls.tracking.wandb_run import FINISH_SECONDS
from tests.harness import ROOT, environment
from tests.tracking.test_tracker import history, inspect


def double(task: object) -> object:
    match task:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fault":
            raise KeyError("a fault of ours")
        case "data":
            raise DataError("photo.jpg cannot be read")
        case float():
            time.sleep(task)
        case "pid":
            return os.getpid()
    return (task, task)


def in_a_daemon(results: Any) -> None:
    try:
        Workers(1, double)
    except ValueError as error:
        results.send(str(error))


def test_a_daemonic_process_gets_an_error_that_says_what_to_do() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    context.Process(target=in_a_daemon, args=(theirs,), daemon=True).start()
    assert ours.poll(20) and "use 0 workers here" in ours.recv()


def test_answers_are_given_in_any_order_and_dropped_ones_go() -> None:
    workers = Workers(2, double)
    tickets = [workers.ask(number % 2, number) for number in range(6)]
    workers.drop(tickets[1])
    assert [workers.answer(number % 2, tickets[number]) for number in (4, 0, 5, 2, 3)] == [
        (n, n) for n in (4, 0, 5, 2, 3)
    ]
    assert not workers._answers and not workers._dropped
    workers.close()


def test_the_death_of_one_names_its_task_and_not_the_next_one() -> None:
    workers = Workers(1, double)
    asked = [workers.ask(0, task) for task in ("first", "die", "behind it")]
    assert workers.answer(0, asked[0]) == ("first", "first")
    for ticket in asked[1:]:
        with pytest.raises(WorkerDied, match="killed by SIGKILL") as caught:
            workers.answer(0, ticket)
        assert caught.value.task == "die"
    with pytest.raises(WorkerDied):
        workers.answer(0, workers.ask(0, "later"))
    workers.close()


def test_a_fork_that_fails_is_an_error_of_the_option_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, forked = os.fork, list[int]()

    def second_fails() -> int:
        if forked:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        forked.append(fork())
        return forked[0]

    monkeypatch.setattr(os, "fork", second_fails)
    with pytest.raises(ValueError, match=r"data\.workers: process 2 of 3 .*unavailable.* use fewer"):
        Workers(3, double)
    with pytest.raises(ProcessLookupError):
        os.kill(forked[0], 0)


def test_an_answer_that_is_cut_off_is_a_death() -> None:
    workers = Workers(1, "x".__mul__)
    ticket = workers.ask(0, 50_000_000)
    workers._links[0].poll(20)  # it is in the middle of sending
    os.kill(workers.pids[0], signal.SIGKILL)
    with pytest.raises(WorkerDied, match="killed by SIGKILL"):
        workers.answer(0, ticket)
    workers.close()


def test_errors_keep_their_meaning() -> None:
    with pytest.raises(DataError, match=r"^photo\.jpg cannot be read$"):
        list(in_order(double, ["data"], 1))
    with pytest.raises(RuntimeError, match="KeyError in a loader process: 'a fault of ours'") as caught:
        list(in_order(double, ["fault"], 1))
    assert "raise KeyError" in caught.value.__notes__[0]  # where it was


@pytest.mark.parametrize("count", [0, 1, 3])
def test_answers_in_order(count: int) -> None:
    rng = np.random.default_rng(0)
    tasks = [0.01 * float(value) for value in rng.random(30)]
    assert list(in_order(double, tasks, count)) == [(task, task) for task in tasks]
    assert list(in_order(double, [], count)) == []


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_signals_of_the_run_do_not_reach_them(name: str) -> None:
    workers = Workers(1, double)
    (pid,) = workers.pids
    assert workers.answer(0, workers.ask(0, "pid")) == pid
    os.kill(pid, signal.Signals[name])
    assert workers.answer(0, workers.ask(0, "pid")) == pid
    workers.close()


def test_closing_does_not_wait_for_a_task() -> None:
    workers = Workers(2, double)
    workers.ask(0, 60.0)
    since = time.monotonic()
    workers.close()
    assert time.monotonic() - since < 5
    for pid in workers.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


OWNER = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from tests.data.test_workers import double
from cls.data.workers import Workers
workers = Workers(3, double)
print(*workers.pids, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.integration
def test_they_leave_when_their_owner_was_killed() -> None:
    """Each of them, though the later ones were forked beside the links of the earlier ones."""
    owner = OWNER.format(root=str(ROOT), tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", owner], env=environment(), capture_output=True, text=True, timeout=120)
    pids = list(map(int, done.stdout.split()))
    assert len(pids) == 3 and done.returncode == -signal.SIGKILL, done.stderr
    end = time.monotonic() + 20
    while time.monotonic() < end and any(map(running, pids)):
        time.sleep(0.1)
    assert not any(map(running, pids))


FORGETFUL = """
import sys, weakref
weakref.finalize(sys.stdout, print)  # registered before multiprocessing's own end, so that this one comes after it
sys.path[:0] = [{root!r}, {tests!r}]
from tests.data.test_workers import double
from cls.data.workers import Workers
workers = Workers(2, double)
workers.ask(0, 60.0)
print(*workers.pids, flush=True)
raise SystemExit(3)
"""


@pytest.mark.integration
def test_they_leave_when_their_owner_ends_without_a_word() -> None:
    since = time.monotonic()
    owner = FORGETFUL.format(root=str(ROOT), tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", owner], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and time.monotonic() - since < 55, done.stderr
    assert not any(map(running, map(int, done.stdout.split())))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


# --- real runs ---


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, all three splits."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
                picture.save(root / split / name / f"{number}.jpg")
    return root


SMALL = [
    "digits", "--data.size", "32", "--data.workers", "2", "--train.batch", "16", "--train.micro-batch", "4",
    "--train.eval-batch", "4", "--model.backbone", "timm/test_resnet", "--model.weights", "none",
    "--augment.tta", "identity", "hflip",
]  # fmt: skip


def forks(record: Path) -> list[list[str]]:
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


@pytest.mark.integration
@pytest.mark.parametrize("world_size", [1, 2])
def test_at_each_fork_of_a_run_the_only_thread_is_the_main_one(tmp_path: Path, images: Path, world_size: int) -> None:
    """Three epochs with W&B, checkpoints, a heartbeat, validations, a test split and test-time views: one set of loader
    processes for each rank."""
    record, out = tmp_path / "forks", tmp_path / "run"
    command = [sys.executable, str(ROOT / "tests" / "harness" / "audited.py"), str(record), "train", *SMALL]
    command += ["--data.path", str(images), "--train.epochs", "3", "--train.save-minutes", "0", "--out", str(out)]
    if world_size > 1:
        command[1:1] = ["-m", "torch.distributed.run", f"--nproc_per_node={world_size}", "--standalone"]
    env = environment(WANDB_MODE="offline", WANDB_DATA_DIR=str(tmp_path / "wandb"))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{world_size} process(es)" in done.stdout
    assert forks(record) == [["MainThread"]] * 2 * world_size
    if world_size == 1:
        for words in (["evaluate", str(out)], ["predict", str(out), str(images / "test")], ["check", str(images)]):
            record.unlink(missing_ok=True)
            command = [
                sys.executable,
                str(ROOT / "tests" / "harness" / "audited.py"),
                str(record),
                "cls",
                *words,
                "--workers",
                "2",
            ]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            assert forks(record) and forks(record) == [["MainThread"]] * len(forks(record)), words


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["no key", "a key", "parquet", pytest.param("compiled", marks=pytest.mark.soak)])
def test_other_libraries_threads_are_not_there_at_a_fork(tmp_path: Path, images: Path, kind: str) -> None:
    """W&B answers whether a key is known by its service; datasets and downloads leave tqdm's monitor."""
    record, words = tmp_path / "forks", [*SMALL, "--train.max-steps", "2", "--out", "run"]
    env = {"HOME": str(tmp_path)}
    if kind == "parquet":
        pack(str(images), tmp_path / "packed", PackOptions())
        images = tmp_path / "packed"
    if kind == "compiled":
        words += ["--train.compile", "True", "--train.reduce", "fast"]
    if kind == "a key":
        env |= {"WANDB_API_KEY": "0123456789abcdef" * 2 + "fedcba98", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    words += ["--track.wandb", "disabled"] if kind in ("parquet", "compiled") else []
    command = [sys.executable, str(ROOT / "tests" / "harness" / "audited.py"), str(record), "train", *words]
    process = started([*command, "--data.path", str(images)], tmp_path, **env)
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("best validation accuracy"):
            process.send_signal(signal.SIGINT)  # what a server that is not there would be waited for
    assert process.wait(120) == 0, output
    assert forks(record) == [["MainThread"]] * 2


def started(command: list[str], cwd: Path, **env: str) -> subprocess.Popen[str]:
    """In a process group of its own, as a shell with job control or a scheduler starts it."""
    return subprocess.Popen(
        command, env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        start_new_session=True,
    )  # fmt: skip


def rows(out: Path) -> list[dict[str, float]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.integration
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_the_whole_group_saves_and_resumes_bit_for_bit(tmp_path: Path, images: Path, name: str) -> None:
    """As ``timeout 100 python train.py`` and many schedulers send it: to the loader's processes and W&B's too."""
    words = [*SMALL, "--data.path", str(images), "--train.epochs", "12"]
    command, out = [sys.executable, str(ROOT / "train.py"), *words], tmp_path / "stopped"
    process = started([*command, "--out", str(out)], tmp_path, WANDB_MODE="offline")
    end = time.monotonic() + 120
    while len(rows(out)) < 5 and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.Signals[name])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 85 and f"stopped: {name}" in output and "Traceback" not in output, output
    last = json.loads((out / "exit.json").read_text())["step"]
    assert 3 <= last < 36 and rows(out)[-1]["step"] == last
    if name == "SIGTERM":
        for place in (out, tmp_path / "whole"):
            done = subprocess.run(
                [*command, "--out", str(place), "--track.wandb", "disabled"],
                env=environment(), capture_output=True, text=True, timeout=300, cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
        one, other = (
            {file.name: file.read_bytes() for file in sorted(place.glob("checkpoints/*/*.safetensors"))[-3:]}
            for place in (out, tmp_path / "whole")
        )
        assert one == other and one
        assert [row["train/loss"] for row in rows(out) if "train/loss" in row] == [
            row["train/loss"] for row in rows(tmp_path / "whole") if "train/loss" in row
        ]


@pytest.mark.integration
def test_ctrl_c_while_the_libraries_load_is_quiet(tmp_path: Path) -> None:
    process = started([sys.executable, str(ROOT / "train.py"), "digits", "--out", "run"], tmp_path)
    end = time.monotonic() + 60
    while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < end:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85 and "stopped: SIGINT" in output and "Traceback" not in output, output


def wandb_is_complete(out: Path) -> None:
    """Each row of the record is in W&B's file, and its end too."""
    (records,) = inspect(out)
    steps = [int(float(row["global_step"])) for row in history(records) if "train/loss" in row]
    assert steps == [row["step"] for row in rows(out) if "train/loss" in row], records
    assert any(record["type"] == "exit" for record in records)


WANDB = ["--train.max-steps", "2", "--train.batch", "16", "--track.wandb", "auto"]


@pytest.mark.integration
@pytest.mark.parametrize("turn", range(2))
def test_offline_wandb_starts_beside_the_loader(tmp_path: Path, images: Path, turn: int) -> None:
    start_with_wandb(tmp_path / "run", images, 3)


@pytest.mark.soak
@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("turn", range(5))
def test_thirty_starts_with_offline_wandb(tmp_path: Path, images: Path, turn: int, workers: int, busy: bool) -> None:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        start_with_wandb(tmp_path / "run", images, workers)
    finally:
        if other:
            other.kill()
            other.wait()


def start_with_wandb(out: Path, images: Path, workers: int) -> None:
    words = [*SMALL, *WANDB, "--data.path", str(images), "--data.workers", str(workers), "--out", str(out)]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    process = started(command, out.parent, WANDB_MODE="offline")
    assert process.stdout is not None
    try:  # one that hangs beside a fork does so for FINISH_SECONDS, and says it
        output, _ = process.communicate(timeout=FINISH_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0 and "wandb sync" in output and "took longer than" not in output, output
    wandb_is_complete(out)


@pytest.mark.integration
def test_a_shared_memory_file_system_of_64_kilobytes_is_enough(tmp_path: Path, images: Path) -> None:
    """As containers may have it: neither pixels nor facts nor locks lie in /dev/shm."""
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system in a namespace of its own")
    words = [*SMALL, "--data.path", str(images), "--train.max-steps", "2", "--track.wandb", "disabled"]
    run = f'{small} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", run, "sh", sys.executable, str(ROOT / "train.py"), *words, "--out", "run"],
        env=environment(), capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
