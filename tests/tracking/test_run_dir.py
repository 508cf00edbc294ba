"""The run directory: one live writer, one configuration for all attempts, nobody else's files touched."""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cls import recipes
from cls.commands.parsing import parse_run
from cls.config import Run, change, from_yaml
from cls.data.sources import load
from cls.distributed.world import World
from cls.runtime.exit import ForeignDirectoryError
from cls.runtime.lock import DEAD_AFTER_SECONDS, HEARTBEAT_SECONDS, claim, in_use
from cls.tracking.events import EventLog, read_events
from cls.tracking.run_dir import open_run_dir
from cls.training.resume import keep_data

CLUSTER = World(rank=0, size=1, local_size=1, device=torch.device("cpu"))  # it is only asked for its device
ROOT = Path(__file__).resolve().parents[2]


def run_in(out: Path | str, **sections: Any) -> Run:
    """A configuration of a small network whose weights need no file."""
    model = {"backbone": "timm/test_resnet", "weights": "none"}
    return change(dataclasses.replace(Run(), out=str(out)), **{"model": model} | sections)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_lock(lock: Path, age: float = 0.0, **changed: Any) -> None:
    """A lock as this process would have written it, some of it changed, last touched so many seconds ago."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.unlink(missing_ok=True)
    claim(lock)
    lock.write_text(json.dumps(json.loads(lock.read_text()) | changed))
    os.utime(lock, (time.time() - age, time.time() - age))


# --- the lock ---


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A second live process that holds the lock of a run directory."""
    out = tmp_path_factory.mktemp("held")
    code = (
        "import sys, time; from pathlib import Path; from cls.runtime.lock import claim; "
        "claim(Path(sys.argv[1])); print('held', flush=True); time.sleep(100)"
    )
    command = [sys.executable, "-c", code, str(out / "lock")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process, out
    process.kill()
    process.wait()


def test_a_second_live_writer_is_refused_and_a_killed_ones_lock_taken_over(
    other: tuple[subprocess.Popen[str], Path],
) -> None:
    process, out = other
    before = contents(out)
    assert in_use(out) and not in_use(out.parent)
    with pytest.raises(ForeignDirectoryError) as caught:
        open_run_dir(run_in(out), CLUSTER)
    for part in (str(out), f"process {process.pid}", socket.gethostname(), str(out / "lock")):
        assert part in str(caught.value)
    assert contents(out) == before

    process.send_signal(signal.SIGKILL)  # it stays a zombie until somebody waits for it, in containers for ever
    deadline = time.time() + 10
    while ") Z " not in Path(f"/proc/{process.pid}/stat").read_text() and time.time() < deadline:
        time.sleep(0.01)
    assert not in_use(out)
    open_run_dir(run_in(out), CLUSTER)
    assert json.loads((out / "lock").read_text())["pid"] == os.getpid()


def test_a_lock_names_its_owner_and_is_given_back(tmp_path: Path) -> None:
    with open_run_dir(run_in(tmp_path / "run"), CLUSTER) as folder:
        lock = json.loads((folder.path / "lock").read_text())
        assert (lock["host"], lock["pid"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(ForeignDirectoryError):  # also by this same process
            claim(folder.path / "lock")
    assert not (tmp_path / "run" / "lock").exists()


def test_what_a_killed_process_was_writing_is_deleted(tmp_path: Path) -> None:
    """Aside, and as large as the model; killed before its first file, a run is begun again."""
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.yaml.some-node-17.tmp").write_text("half")
    with open_run_dir(run_in(out), CLUSTER):
        pass
    (out / "lock").unlink(missing_ok=True)
    (out / "best").mkdir()
    left = [out / "best" / ".model.safetensors.node.example.org-5512.tmp", out / ".data.json.vm-3.tmp"]
    others = [out / "best" / ".mine.tmp", out / "best" / "model.safetensors"]
    for path in (*left, *others):
        path.write_text("half")
    with open_run_dir(run_in(out), CLUSTER):
        pass
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)
    assert not list(out.glob(".*.tmp"))


def test_a_lock_that_was_taken_over_is_not_given_back(tmp_path: Path) -> None:
    with open_run_dir(run_in(tmp_path / "run"), CLUSTER) as folder:
        write_lock(folder.path / "lock", pid=1)
    assert (tmp_path / "run" / "lock").exists()


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    write_lock(tmp_path / "lock", birth="17")
    claim(tmp_path / "lock")
    assert json.loads((tmp_path / "lock").read_text())["birth"] not in ("17", "")


def test_a_process_that_is_gone_is_not_the_owner(tmp_path: Path) -> None:
    write_lock(tmp_path / "lock", pid=2**22 + 5)  # above the kernel's limit
    claim(tmp_path / "lock")


@pytest.mark.parametrize("age", [0, HEARTBEAT_SECONDS * 2, DEAD_AFTER_SECONDS - 30])
def test_a_writer_on_another_host_lives_by_its_heartbeat(tmp_path: Path, age: float) -> None:
    write_lock(tmp_path / "lock", age, host="node7", job="4711")
    with pytest.raises(ForeignDirectoryError, match=r"on node7 \(job 4711\)"):
        claim(tmp_path / "lock")


def test_a_silent_writer_on_another_host_is_dead(tmp_path: Path) -> None:
    write_lock(tmp_path / "lock", DEAD_AFTER_SECONDS + 5, host="node7")
    claim(tmp_path / "lock")
    assert json.loads((tmp_path / "lock").read_text())["host"] == socket.gethostname()


def test_a_requeued_job_continues_at_once_on_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job has one attempt at a time: the lock of the same SLURM job on another host is of its earlier attempt."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write_lock(tmp_path / "lock", 10, host="node7", job="4712")
    with pytest.raises(ForeignDirectoryError, match="node7"):
        claim(tmp_path / "lock")
    write_lock(tmp_path / "lock", 10, host="node7", job="4711")
    claim(tmp_path / "lock")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": "x"}', "\x00\xff"])
def test_an_unreadable_lock_counts_only_while_it_is_fresh(tmp_path: Path, text: str) -> None:
    lock = tmp_path / "lock"
    lock.write_text(text)
    os.utime(lock, (time.time() - 60, time.time() - 60))
    claim(lock)
    assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_a_lock_being_written_this_moment_is_respected(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with pytest.raises(ForeignDirectoryError):
        claim(tmp_path / "lock")


ROUNDS, CONTENDERS = 20, 8


def contend(root: Path, start: Any, tried: Any) -> None:
    """Claim a dead process's lock in each round, where a rename takes its time before and after."""
    rng, rename = random.Random(os.getpid()), os.rename

    def slow(*names: Any) -> None:
        time.sleep(rng.random() * 0.02)
        rename(*names)
        time.sleep(rng.random() * 0.02)

    os.rename = slow  # of this process
    for number in range(ROUNDS):
        start.wait()
        time.sleep(rng.random() * 0.01)
        try:
            claim(root / str(number) / "lock")
            (root / str(number) / f"won-{os.getpid()}").touch()
        except ForeignDirectoryError:
            pass
        tried.wait()  # the owner lives until all have tried


def test_of_many_that_find_a_dead_lock_exactly_one_takes_it(tmp_path: Path) -> None:
    """Real processes; in every third round an earlier one has died while it took the lock over."""
    for number in range(ROUNDS):
        lock = tmp_path / str(number) / "lock"
        write_lock(lock, birth="17")
        if number % 3 == 0:
            write_lock(lock.with_name(f"lock.{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"), birth="18")
    fork = multiprocessing.get_context("fork")
    barriers = fork.Barrier(CONTENDERS), fork.Barrier(CONTENDERS)
    children = [fork.Process(target=contend, args=(tmp_path, *barriers)) for _ in range(CONTENDERS)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    for number in range(ROUNDS):
        names = sorted(os.listdir(tmp_path / str(number)))
        owner = json.loads((tmp_path / str(number) / "lock").read_text())
        assert names == ["lock", f"won-{owner['pid']}"]


def test_the_lock_beats_while_the_folder_is_open_and_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cls.runtime.lock.HEARTBEAT_SECONDS", 0.05)
    lock = tmp_path / "run" / "lock"
    with open_run_dir(run_in(tmp_path / "run"), CLUSTER) as folder:
        for _ in range(2):  # a beat, whatever the main thread does
            os.utime(lock, (1, 1))
            while lock.stat().st_mtime < 2:
                time.sleep(0.01)
        lock.unlink()  # deleted by hand: no reason to die, and no lock of our own making
        time.sleep(0.2)
        folder.reject_successor()
        assert not lock.exists()
        write_lock(lock, pid=1, host="node7")
        with pytest.raises(ForeignDirectoryError, match="taken over by process 1 on node7"):
            folder.reject_successor()
    assert json.loads(lock.read_text())["host"] == "node7"  # somebody else's: left in place


def test_the_lock_beats_again_after_processes_were_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cls.runtime.lock.HEARTBEAT_SECONDS", 0.05)
    lock = tmp_path / "run" / "lock"
    with open_run_dir(run_in(tmp_path / "run"), CLUSTER) as folder:
        with folder.without_threads():
            os.utime(lock, (1, 1))
            time.sleep(0.2)
            assert lock.stat().st_mtime == 1
        end = time.monotonic() + 20
        while lock.stat().st_mtime == 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert lock.stat().st_mtime > 1


def test_attempts_are_counted_from_those_that_began(tmp_path: Path) -> None:
    for attempt in range(3):
        with open_run_dir(run_in(tmp_path / "run"), CLUSTER) as folder:
            assert folder.attempt == attempt
            events = EventLog(folder.path, folder.attempt)
            events.add("start", step=attempt, processes=1, device="CPU", host="h")
            events.close()
    with (tmp_path / "run" / "events.jsonl").open("a") as file:
        file.write('{"attempt": 7, "ev')  # a kill inside a line
    with open_run_dir(run_in(tmp_path / "run"), CLUSTER) as folder:
        assert folder.attempt == 3
        events = EventLog(folder.path, 3)
        events.add("start", step=3, processes=1, device="CPU", host="h")
        events.close()
    assert [event["attempt"] for event in read_events(tmp_path / "run")] == [0, 1, 2, 3]


# --- the configuration ---


def first_attempt(out: Path, **sections: Any) -> None:
    with open_run_dir(run_in(out, **sections), CLUSTER):
        pass


def test_a_new_directory_gets_the_resolved_configuration(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with open_run_dir(run_in(out), CLUSTER) as folder:
        assert folder.path == out and not folder.finished
        assert folder.run == run_in(out, train={"precision": "fp32", "channels_last": True})  # auto on a CPU
        assert from_yaml((out / "config.yaml").read_text()) == folder.run


def test_without_out_the_name_is_recipe_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_run_dir(change(run_in(""), recipe="digits"), CLUSTER) as folder:
        assert folder.path.parent == Path("runs") and folder.run.out == str(folder.path)
        made = time.mktime(time.strptime(folder.path.name, "digits-%Y%m%d-%H%M%S"))
        assert abs(time.time() - made) < 5


def test_another_configuration_is_refused_with_what_differs_and_changes_nothing(tmp_path: Path) -> None:
    first_attempt(tmp_path)
    (tmp_path / "exit.json").write_text('{"outcome": "stopped"}')
    before = contents(tmp_path)
    with pytest.raises(ValueError) as caught:
        open_run_dir(run_in(tmp_path, optim={"lr": 0.5}, train={"batch": 32}), CLUSTER)
    for part in (str(tmp_path), "another configuration", "optim.lr: 0.0001 -> 0.5", "train.batch: 64 -> 32", "--out"):
        assert part in str(caught.value)
    assert "precision" not in str(caught.value)  # auto is what was resolved
    assert contents(tmp_path) == before  # the lock included


def test_more_epochs_are_rejected_with_the_command_that_trains_longer(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first_attempt(out, train={"epochs": 4})
    (out / "exit.json").write_text('{"outcome": "done"}')
    (tmp_path / "run-2").mkdir()

    def rejection(**sections: Any) -> str:
        with pytest.raises(ValueError, match="another configuration") as caught:
            open_run_dir(run_in(out, **sections), CLUSTER)
        return str(caught.value)

    assert "--start-from" not in rejection(train={"epochs": 8})  # from what?
    (out / "best").mkdir()
    (out / "best" / "model.safetensors").touch()
    command = f"python train.py digits --start-from {out} --train.epochs 8.5 --out {out}-3"
    assert rejection(train={"epochs": 8.5}).endswith(
        f"train.epochs: 4 -> 8.5\nto train longer, from its best weights: {command}"
    )
    assert rejection(train={"epochs": 8.5}, optim={"lr": 0.5}).endswith(f"{command} (add the other changes)")
    assert "--start-from" not in rejection(train={"epochs": 2})


@pytest.mark.parametrize("outcome", ["user_error", "data", "out_of_memory", "error"])
def test_after_a_fault_at_the_start_the_corrected_command_goes_on(tmp_path: Path, outcome: str) -> None:
    """What a message says to add must not be rejected as another configuration."""
    first_attempt(tmp_path)
    (tmp_path / "exit.json").write_text(json.dumps({"outcome": outcome, "code": 2, "reason": "", "step": 0}))
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "0000-0000.csv").write_text("0,0,a/1.jpg,\n")  # of another configuration's images
    (tmp_path / "wandb_id").write_text("abc")
    with open_run_dir(run_in(tmp_path, train={"micro_batch": 8}), CLUSTER) as folder:
        assert folder.run.train.micro_batch == 8 and (tmp_path / "lock").exists()
    assert "micro_batch: 8" in (tmp_path / "config.yaml").read_text() and not (tmp_path / "data.json").exists()
    assert not (tmp_path / "ledger").exists() and not (tmp_path / "wandb_id").exists()
    (tmp_path / "exit.json").write_text(json.dumps({"outcome": outcome, "code": 2, "reason": "", "step": 0}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')  # a run with steps keeps its configuration
    if outcome == "out_of_memory":  # but for one that nothing continues from
        (tmp_path / "checkpoints" / "step-0000001").mkdir(parents=True)
    with pytest.raises(ValueError, match="another configuration"):
        open_run_dir(run_in(tmp_path), CLUSTER)


def test_a_precision_asked_for_is_not_auto(tmp_path: Path) -> None:
    first_attempt(tmp_path)
    with pytest.raises(ValueError, match=r"train\.precision: 'fp32' -> 'bf16'"):
        open_run_dir(run_in(tmp_path, train={"precision": "bf16"}), CLUSTER)


def test_the_stored_precision_is_kept(tmp_path: Path) -> None:
    first_attempt(tmp_path, train={"precision": "bf16"})
    with open_run_dir(run_in(tmp_path), CLUSTER) as folder:
        assert folder.run.train.precision == "bf16"


def test_fields_of_the_moment_may_change_and_are_stored(tmp_path: Path) -> None:
    first_attempt(tmp_path)
    moment = {"data": {"workers": 3}, "train": {"keep": 5, "max_steps": 7}, "track": {"wandb": "disabled"}}
    with open_run_dir(run_in(tmp_path, **moment), CLUSTER) as folder:
        resolved = {"precision": "fp32", "channels_last": True}
        assert folder.run == run_in(tmp_path, **moment | {"train": {"keep": 5, "max_steps": 7, **resolved}})
        assert from_yaml((tmp_path / "config.yaml").read_text()) == folder.run


def test_a_moved_directory_is_the_same_run(tmp_path: Path) -> None:
    first_attempt(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    with open_run_dir(run_in(tmp_path / "b"), CLUSTER) as folder:
        assert folder.run.out == str(tmp_path / "b")


@pytest.mark.parametrize("text", ["", "optim: {magic: 1}", "a: [", "[1]", "optim: 3"])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    first_attempt(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        open_run_dir(run_in(tmp_path), CLUSTER)
    assert not (tmp_path / "lock").exists() and (tmp_path / "config.yaml").read_text() == text


def test_a_finished_run_says_so_and_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first_attempt(tmp_path)
    (tmp_path / "exit.json").write_text(json.dumps({"outcome": "done", "reason": "best 0.9"}))
    before = contents(tmp_path)
    with open_run_dir(run_in(tmp_path, train={"keep": 4}), CLUSTER) as folder:
        assert folder.finished
    assert "best 0.9" in capsys.readouterr().out
    assert contents(tmp_path) == before
    with open_run_dir(run_in(tmp_path, train={"max_steps": 9}), CLUSTER) as folder:  # it was finished for other steps
        assert not folder.finished


@pytest.mark.parametrize("text", ['{"outcome": "stopped", "reason": "x"}', '{"outcome": "error"}', "{", "[]", "3", ""])
def test_a_run_that_ended_otherwise_goes_on(tmp_path: Path, text: str) -> None:
    first_attempt(tmp_path)
    (tmp_path / "exit.json").write_text(text)
    with open_run_dir(run_in(tmp_path), CLUSTER) as folder:
        assert not folder.finished
        assert not (tmp_path / "exit.json").exists()  # it would be taken for this attempt's


# --- places that cannot be used ---


def test_somebody_elses_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ForeignDirectoryError, match="holds other files"):
        open_run_dir(run_in(tmp_path), CLUSTER)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_an_empty_folder_or_one_with_only_an_earlier_refusal_is_fine(tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text('{"outcome": "user_error"}')
    with open_run_dir(run_in(tmp_path), CLUSTER) as folder:
        assert folder.path == tmp_path and not (tmp_path / "exit.json").exists()


def test_a_file_in_the_way_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot be written.*--out") as caught:
            open_run_dir(run_in(out), CLUSTER)
        assert str(out) in str(caught.value) and not isinstance(caught.value, ForeignDirectoryError)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_a_value_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        open_run_dir(run_in(tmp_path / "run"), CLUSTER)


def test_a_line_that_is_no_event_is_named(tmp_path: Path) -> None:
    for line in ("[]", "{}", "{"):
        (tmp_path / "events.jsonl").write_text('{"attempt": 0, "event": "new", "time": 1.0}\n' + line + "\n")
        with pytest.raises(ValueError, match=r"events\.jsonl: line 2 is no.* \(.*\); remove that line"):
            read_events(tmp_path)


# --- without --out ---


def test_starts_of_the_same_second_take_the_next_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six at once, and one beside something else of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20261128-231144")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits-20261128-231144-3").write_text("a file")
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda seed: open_run_dir(change(run_in(""), seed=seed), CLUSTER), range(6)))
    first = "runs/digits-20261128-231144"
    assert sorted(str(folder.path) for folder in folders) == [first, *(f"{first}-{n}" for n in (2, 4, 5, 6, 7))]
    assert all(folder.unnamed and not folder.finished and folder.attempt == 0 for folder in folders)
    for folder in folders:
        assert from_yaml((folder.path / "config.yaml").read_text()) == folder.run
        assert folder.run.out == str(folder.path)
    assert not open_run_dir(run_in(tmp_path / "named"), CLUSTER).unnamed


def test_what_fails_while_it_is_opened_leaves_no_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cls.tracking.run_dir.resolve_automatic", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_run_dir(run_in(""), CLUSTER)
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        open_run_dir(run_in(tmp_path / "named"), CLUSTER)
    assert (tmp_path / "named").is_dir() and not (tmp_path / "named" / "lock").exists()


# --- images that were moved ---


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Path, Run]:
    """The directory of a run that was started, the new place of its images, and the run by that place."""
    for label in ("a", "b"):
        (tmp_path / "old" / label).mkdir(parents=True)
        for i in range(6):
            (tmp_path / "old" / label / f"{i}.jpg").write_bytes(b"x")
    run = change(
        dataclasses.replace(recipes.get("digits"), out=str(tmp_path / "run")), data={"path": str(tmp_path / "old")}
    )
    with open_run_dir(run, CLUSTER) as folder:
        keep_data(folder, load(run.data, run.seed), CLUSTER)
    (tmp_path / "old").rename(tmp_path / "new")
    return tmp_path / "run", tmp_path / "new", change(run, data={"path": str(tmp_path / "new")})


def test_moved_images_are_named_with_the_command_that_continues(
    moved: tuple[Path, Path, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, new, run = moved
    monkeypatch.setattr(sys, "argv", ["train.py", "digits", f"--data.path={new}", "--out", str(out)])
    with pytest.raises(ValueError, match=r"has the same images, so the run continues, .*, with: ") as caught:
        open_run_dir(run, CLUSTER)
    words = shlex.split(str(caught.value).rpartition(" with: ")[2])
    assert words[:2] == ["python", "train.py"] and "--out" in words and "\n" not in str(caught.value)
    again = parse_run(words[2:])
    with open_run_dir(again, CLUSTER) as folder:
        keep_data(folder, load(again.data, again.seed), CLUSTER)  # the same images
        assert folder.path == out and (again.data.path, again.data.copy) == (str(new.with_name("old")), str(new))


def test_other_images_at_the_new_place_are_named(moved: tuple[Path, Path, Run]) -> None:
    _, new, run = moved
    (new / "a" / "more.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is not what .* started with \(10 training images then, 11 now\): use"):
        open_run_dir(run, CLUSTER)
    shutil.rmtree(new)
    with pytest.raises(
        ValueError, match=r"use another --out \(.*\); but if the images were only moved, .* --data.copy "
    ):
        open_run_dir(run, CLUSTER)
    with pytest.raises(ValueError, match=r"another configuration; use another --out:\n  seed: 0 -> 1\n  data.path"):
        open_run_dir(change(run, seed=1), CLUSTER)


# --- a directory that is no longer there ---


@pytest.mark.parametrize("blow", ["deleted", "renamed", "replaced"])
def test_a_directory_that_was_deleted_or_renamed_is_noticed(tmp_path: Path, blow: str) -> None:
    with open_run_dir(run_in(tmp_path / "run"), CLUSTER) as folder:
        assert not folder.lost
        folder.reject_successor()
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        if blow == "deleted":
            shutil.rmtree(tmp_path / "elsewhere")
        elif blow == "replaced":
            (tmp_path / "run").mkdir()
        assert folder.lost
        with pytest.raises(ForeignDirectoryError, match=r"was deleted or renamed while the run was writing to it"):
            folder.reject_successor()
