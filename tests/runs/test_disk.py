"""A disk that is full, read-only, slow or gone, and images that vanish: the last good checkpoint always survives."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import environment, timeless
from forked import Bench, Ended, bench
from safetensors import safe_open
from safetensors.torch import load_file

from cls.config import Run, change
from cls.runtime.files import Lines
from cls.tracking.events import EventLog, read_events
from cls.tracking.run_dir import RunDir
from cls.training import checkpoint, checkpoint_writer
from cls.training.checkpoint import checkpoints, restore, verify
from cls.training.checkpoint_writer import CheckpointWriter, best_step, repair_best
from cls.training.state import State
from tests.runs.test_stopping import TINY, saved
from tests.runs.test_survival import bits
from tests.training.test_checkpoint import ALONE, advance, build
from tests.training.test_checkpoint import bits as state_bits

SOON = '{"cls.training.checkpoint_writer.RETRY_SECONDS": 0.0}'
KEEP1 = [*TINY, "--train.keep", "1"]


@pytest.fixture(scope="module")
def runs() -> Iterator[Bench]:
    with bench(environment()) as found:
        yield found


@pytest.fixture(scope="module")
def whole(runs: Bench, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One process, on a disk without problems."""
    ended = runs.run(tmp_path_factory.mktemp("disk") / "whole", KEEP1)
    assert ended.codes == [0], ended.output
    return ended


Mount = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    """Makes a disk of so many megabytes."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("needs root to mount a small disk")
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"cannot mount a small disk here: {tried.stderr.strip()}")
        mounted.append(place)
        return place

    try:
        yield mount
    finally:
        for place in mounted:
            while subprocess.run(["umount", str(place / "run")], capture_output=True).returncode == 0:
                pass  # read-only views of the run directory
            subprocess.run(["umount", str(place)], check=True)


def commands(place: Path) -> dict[str, str]:
    """Shell commands for blows; a view mounted over the run directory makes new names read-only, not open files."""
    out, ballast = place / "run", place / "ballast"
    return {
        "FILL": f"head -c 200M /dev/zero > {ballast} 2>/dev/null; true",
        "FREE": f"rm {ballast}",
        "LOCK": f"mount --bind {out} {out} && mount -o remount,bind,ro {out}",
        "UNLOCK": f"umount {out}",
        "FORKED_SET": SOON,
    }


def check_done(ended: Ended, whole: Ended, world: int = 1) -> None:
    assert ended.codes == [0] * world and ended.exit["outcome"] == "done", ended.output
    assert bits(ended) == bits(whole) and "Traceback" not in ended.output
    assert not list(ended.out.rglob(".*.tmp"))


def failures(out: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(out) if event["event"] == "save_failed"]


# --- the disk fills up ---


@pytest.mark.integration
def test_a_disk_that_is_too_small_is_refused_before_training(runs: Bench, disk: Mount) -> None:
    """376,186 parameters: model, average and two moments are 6.0 MB, best weights 1.5 MB."""
    ended = runs.run(disk(5) / "run", KEEP1)
    assert ended.codes == [2] and ended.exit["outcome"] == "user_error", ended.output
    assert "checkpoint and the best weights take 8" in ended.exit["reason"]
    assert ended.exit["reason"].startswith("out: 5 MB are free in ") and ended.exit["step"] == 0
    assert ended.rows == [] and saved(ended.out) == [] and "Traceback" not in ended.output


@pytest.mark.integration
@pytest.mark.parametrize(
    ("begin", "end", "reason", "world"),
    [
        ("FILL", "FREE", "No space left on device", 1),
        ("LOCK", "UNLOCK", "Read-only file system", 1),
        pytest.param("FILL", "FREE", "No space left on device", 2, marks=pytest.mark.soak),
    ],
)
def test_a_disk_in_trouble_for_a_while_does_not_end_the_run(
    runs: Bench, disk: Mount, whole: Ended, begin: str, end: str, reason: str, world: int
) -> None:
    """After the first checkpoint, until step 7 begins; rows of the record wait in memory meanwhile."""
    place = disk(60)
    blow = f"${begin}@0:after pruning:1;${end}@0:step:7"
    ended = runs.run(place / "run", KEEP1, world, blow, **commands(place))
    assert ended.struck == ["after pruning", "step"]
    check_done(ended, whole, world)
    found = failures(ended.out)
    assert found and found[0]["reason"] == reason and found[0]["step"] > 3
    assert f"could not be written ({reason}); the last one is step-0000003" in ended.output
    assert [row["step"] for row in ended.rows if "train/loss" in row] == list(range(1, 9))
    assert saved(ended.out)[-1] == (8, 8)


@pytest.mark.integration
def test_rows_of_the_record_wait_for_the_disk(runs: Bench, disk: Mount) -> None:
    """A disk gives 4096 bytes at a time, which is some twenty rows: thirty steps need more."""
    args = [*KEEP1, "--train.batch", "4", "--track.ledger", "False"]
    place = disk(60)
    plain = runs.run(place / "plain", args)
    ended = runs.run(place / "run", args, 1, "$FILL@0:after pruning:1;$FREE@0:step:30", **commands(place))
    assert plain.codes == ended.codes == [0] and ended.struck == ["after pruning", "step"], ended.output
    assert ended.output.count("metrics.jsonl cannot be written (No space left on device)") == 1
    rows = [timeless(run.rows) for run in (ended, plain)]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0] if "train/loss" in row] == list(range(1, 31))
    assert saved(ended.out)[-1] == saved(plain.out)[-1] == (30, 30) and failures(ended.out)


@pytest.mark.integration
@pytest.mark.parametrize(("begin", "end"), [("FILL", "FREE"), pytest.param("LOCK", "UNLOCK", marks=pytest.mark.soak)])
def test_a_disk_in_trouble_to_the_end_is_one_clear_message(
    runs: Bench, disk: Mount, whole: Ended, begin: str, end: str
) -> None:
    place = disk(60)
    ended = runs.run(place / "run", KEEP1, 1, f"${begin}@0:after pruning:1", **commands(place))
    assert ended.codes == [2] and "Traceback" not in ended.output, ended.output
    assert ended.output.count("user error: ") == 1 and "free space" in ended.output.partition("user error: ")[2]
    assert "checkpoint of step 8 could not be written" in ended.output
    assert saved(ended.out) == [(3, 3)] and not list(place.rglob(".*.tmp"))
    subprocess.run(commands(place)[end], shell=True, check=True)
    again = runs.run(ended.out, KEEP1)
    assert "step 3 of 8 ->" in again.output
    check_done(again, whole)


@pytest.mark.integration
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_disk_that_is_full_at_the_first_save_ends_the_run(runs: Bench, disk: Mount, whole: Ended, world: int) -> None:
    """There is nothing yet that the run could go on from, so each further step would be lost time."""
    place = disk(60)
    ended = runs.run(place / "run", KEEP1, world, "$FILL@0:before a save:1", **commands(place))
    assert ended.codes[0] == 2 and all(ended.codes), ended.output
    assert f"user error: {place / 'run' / 'checkpoints'}: the first checkpoint could not be written" in ended.output
    assert "Traceback" not in ended.output and saved(ended.out) == []
    subprocess.run(commands(place)["FREE"], shell=True, check=True)
    check_done(runs.run(ended.out, KEEP1, world), whole, world)


@pytest.mark.integration
def test_a_read_only_place_is_refused_by_name(runs: Bench, disk: Mount) -> None:
    place = disk(20)
    (place / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    log = place.parent / "log"
    log.mkdir()
    (log / "run").symlink_to(place / "run")  # the bench keeps its notes beside the directory that it names
    ended = runs.run(log / "run", [*KEEP1])
    assert ended.codes == [2] and "Traceback" not in ended.output, ended.output
    assert "user error: out: " in ended.output and "Read-only file system" in ended.output


# --- a network file system ---


@pytest.mark.soak
def test_slow_renames_and_late_names_cost_time_only(runs: Bench, tmp_path: Path, whole: Ended) -> None:
    late = {"FORKED_SLOW": "0.2", "FORKED_LATE": "1.0"}
    stopped = runs.run(tmp_path / "run", KEEP1, 2, "SIGTERM@1:step:6", **late)
    assert stopped.codes == [85, 85], stopped.output
    check_done(runs.run(stopped.out, KEEP1, 2, **late), whole, 2)


@pytest.mark.integration
@pytest.mark.parametrize("what", ["the checkpoint", "the best weights"])
def test_a_name_that_never_shows_up_is_an_error_on_all_ranks(
    runs: Bench, tmp_path: Path, whole: Ended, what: str
) -> None:
    first = runs.run(
        tmp_path / "run", KEEP1, 1, "SIGTERM@0:step:6" if what == "the checkpoint" else "SIGTERM@0:build:1"
    )
    assert first.codes == [85]
    never = {"FORKED_LATE": "1e9", "FORKED_SET": '{"cls.runtime.files.VISIBLE_SECONDS": 1.0}'}
    ended = runs.run(first.out, KEEP1, 2, **never)
    assert ended.codes == [2, 2] and ended.exit["outcome"] == "user_error", ended.output
    name = "manifest.json" if what == "the checkpoint" else "best/model.safetensors"
    assert f"{name} is not visible on this host" in ended.exit["reason"] and "Traceback" not in ended.output
    check_done(runs.run(first.out, KEEP1, 2), whole, 2)


# --- images that vanish ---


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """48 training images in 12 classes, of their own: 3 steps an epoch."""
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path / "photos", [*KEEP1, "--data.limit", "0", "--data.path", str(tmp_path / "photos")]


@pytest.mark.integration
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_images_that_vanish_end_the_run_on_all_ranks(
    runs: Bench, tmp_path: Path, images: tuple[Path, list[str]], world: int
) -> None:
    folder, args = images
    ended = runs.run(tmp_path / "run", args, world, f"$GONE@{world - 1}:step:5", GONE=f"mv {folder} {folder}-away")
    assert 3 in ended.codes and set(ended.codes) <= {3, 1}, ended.output  # 1: the partner was gone first
    assert ended.exit["outcome"] == "data" and ended.exit["code"] == 3 and "Traceback" not in ended.output
    assert saved(ended.out) == [(3, 3)]
    Path(f"{folder}-away").rename(folder)
    again = runs.run(tmp_path / "run", args, world)
    assert again.codes == [0] * world and "step 3 of 9 ->" in again.output, again.output


@pytest.mark.integration
def test_one_image_that_vanishes_is_replaced(runs: Bench, tmp_path: Path, images: tuple[Path, list[str]]) -> None:
    folder, args = images
    ended = runs.run(tmp_path / "run", args, 1, "$GONE@0:probe:1", GONE=f"rm {folder}/train/7/7-2.jpg")
    assert ended.codes == [0] and "1 corrupt training images so far" in ended.output, ended.output
    lines = (ended.out / "corrupt_images.csv").read_text().splitlines()
    assert len(lines) == 2 and "7-2.jpg" in lines[1]


# --- the saver, one call at a time ---


def place_of(path: Path, keep: int = 1) -> RunDir:
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    return RunDir(path, change(Run(), train={"keep": keep}), "", 0)


def run_epochs(path: Path, state: State, first: int, last: int) -> None:
    """Each step is an epoch, saved as a run saves it."""
    events = EventLog(path, 0)
    with CheckpointWriter(place_of(path), ALONE, state, {"note": "kept"}, events) as found:
        for step in range(first, last):
            advance(state, step, step + 1)
            state.history.validated = step + 1
            found.save(step + 1)
        found.finish()
    events.close()


def weights_of(path: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


def test_the_saver_keeps_the_last_and_both_best_and_the_best_weights(tmp_path: Path) -> None:
    """The validation loss |sin(1.7 s)| is lowest at step 2 of 0 to 8 but 0, which is lower: step 1 stays the best."""
    state = build()
    run_epochs(tmp_path, state, 0, 9)
    assert state.history.best_accuracy_step == state.history.best_loss_step == 1
    assert [checkpoint.step_of(path) for path in checkpoints(tmp_path / "checkpoints")] == [(1, 1), (9, 1)]
    assert best_step(tmp_path) == 1
    first = build()
    advance(first, 0, 1)
    assert first.average is not None
    expected = {name: value.numpy().tobytes() for name, value in first.average.module.state_dict().items()}
    assert weights_of(tmp_path / "best" / "model.safetensors") == expected
    with safe_open(tmp_path / "best" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"note": "kept", "step": "1"}
    events = [(event["event"], event["step"]) for event in read_events(tmp_path)]
    assert events == [("save", step) for step in range(1, 10)]


def test_at_no_stage_of_a_save_is_there_less_than_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Good checkpoints are counted from outside before and after each thing that a save does to the disk."""
    seen: list[tuple[str, set[int], int]] = []

    def look(stage: str) -> None:
        good = {(checkpoint.step_of(p) or (0, 0))[0] for p in checkpoints(tmp_path / "checkpoints") if not verify(p)}
        seen.append((stage, good, best_step(tmp_path)))

    def watched(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def stage(*args: Any, **kwargs: Any) -> Any:
            look(f"before {name}")
            result = real(*args, **kwargs)
            look(f"after {name}")
            return result

        monkeypatch.setattr(owner, name, stage)

    for owner, name in ((checkpoint, "_save"), (checkpoint, "sync"), (Path, "rename"), (os, "replace"),
                        (shutil, "rmtree"), (checkpoint, "prune")):  # fmt: skip
        watched(owner, name)
    run_epochs(tmp_path, build(), 0, 5)
    assert len(seen) > 5 * 20
    for (_, before, best_before), (stage, after, best_after) in pairwise(seen):
        assert after or not before, stage
        assert max(after, default=0) >= max(before, default=0), stage  # the newest one is never the one to go
        assert best_after > 0 or best_before < 0, stage
        if best_after > 0:
            assert best_after in after or best_before < 0, stage


def test_best_weights_are_made_again_from_the_checkpoint_that_knows_them(tmp_path: Path) -> None:
    """A kill between the checkpoint and the best weights: they are absent, old, or torn."""
    state, file = build(), tmp_path / "best" / "model.safetensors"
    run_epochs(tmp_path, state, 0, 1)
    whole_file, weights = file.read_bytes(), weights_of(file)
    for damage in (file.unlink, lambda: file.write_bytes(whole_file[:100]), lambda: file.write_bytes(b"")):
        damage()
        assert best_step(tmp_path) == -1
        repair_best(tmp_path, state, {"note": "kept"})
        assert best_step(tmp_path) == 1 and weights_of(file) == weights
    checkpoint.save_weights(file, load_file(file), {"step": "7"})  # of an epoch that was lost with its checkpoint
    repair_best(tmp_path, state, {"note": "kept"})
    assert best_step(tmp_path) == 1 and weights_of(file) == weights
    with safe_open(file, framework="pt") as found:
        assert found.metadata() == {"note": "kept", "step": "1"}


def test_best_weights_that_no_checkpoint_has_are_said_to_be_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = build()
    run_epochs(tmp_path, state, 0, 3)
    best = tmp_path / "best" / "model.safetensors"
    (tmp_path / "checkpoints" / "step-0000001" / "average.safetensors").write_bytes(b"")
    best.unlink()
    again = build(seed=9)
    assert restore(tmp_path / "checkpoints", again, ALONE) == 3 and state_bits(again) == state_bits(state)
    repair_best(tmp_path, again, {})
    assert "the best weights (step 1) are lost" in caplog.text and best_step(tmp_path) == -1
    events = EventLog(tmp_path, 1)
    with CheckpointWriter(place_of(tmp_path), ALONE, again, {}, events) as found:
        advance(again, 3, 4)
        again.history.validated = 4
        found.save(4)
        found.finish()
    events.close()
    assert best_step(tmp_path) == again.history.best_accuracy_step == 4


def test_a_failed_save_keeps_the_best_weights_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way of the checkpoints makes each save fail; the best epoch is over by the time it is gone."""
    monkeypatch.setattr(checkpoint_writer, "RETRY_SECONDS", 0.0)
    state, folder, events = build(), place_of(tmp_path), EventLog(tmp_path, 0)
    shutil.rmtree(folder.path / "checkpoints")
    (folder.path / "checkpoints").write_text("in the way")
    with CheckpointWriter(folder, ALONE, state, {}, events) as found:
        advance(state, 0, 1)
        state.history.validated = 1
        found.save(1)
        expected = {name: value.numpy().tobytes() for name, value in state.evaluated.state_dict().items()}
        advance(state, 1, 2)
        state.history.validated = 2
        found.save(2)
        with pytest.raises(ValueError, match="the first checkpoint could not be written"):
            while not found.due():  # False while it is still writing
                pass
        (folder.path / "checkpoints").unlink()
        advance(state, 2, 3)
        state.history.validated = 3
        found.save(3)
        found.finish()
    events.close()
    assert [checkpoint.step_of(path) for path in checkpoints(tmp_path / "checkpoints")] == [(3, 1)]
    assert best_step(tmp_path) == 1 and weights_of(tmp_path / "best" / "model.safetensors") == expected
    assert [(event["event"], event["step"]) for event in read_events(tmp_path)] == [
        ("save_failed", 1), ("save_failed", 2), ("save", 3)
    ]  # fmt: skip


def test_room_for_one_checkpoint_and_the_best_weights_is_asked_for(disk: Mount) -> None:
    state = build()  # 1380 parameters and 17 buffer values: model, average, two moments, best weights
    checkpoint_writer.check_disk_space(disk(1), state)
    small = disk(1)
    (small / "ballast").write_bytes(bytes(2**20 - 4096))
    with pytest.raises(ValueError, match=r"^out: 0 MB are free in .*disk1; .*checkpoint and the best weights"):
        checkpoint_writer.check_disk_space(small, state)


# --- lines ---


def test_half_a_line_of_a_cut_off_life_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthr")
    lines = Lines(path)
    assert path.read_bytes() == b"one\ntwo\n"
    lines.add(b"three\n")
    lines.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    path.write_bytes(b"no newline at all")
    Lines(path).close()
    assert path.read_bytes() == b""


def test_lines_that_the_disk_refuses_in_the_middle_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on file sizes takes a part of a line and refuses the rest, as a nearly full disk does."""
    path, lines = tmp_path / "lines", Lines(tmp_path / "lines")
    text = [str(i).encode() * 300_000 + b"\n" for i in range(6)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        for line in text[:5]:
            lines.add(line)
        assert path.read_bytes() == b"".join(text)[:1_000_000]  # a part of the fourth
        assert caplog.text.count("cannot be written") == 1  # said once
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines.add(text[5])
    lines.close()
    assert path.read_bytes() == b"".join(text)


def test_lines_that_are_never_written_are_counted(disk: Mount, caplog: pytest.LogCaptureFixture) -> None:
    place = disk(1)
    lines = Lines(place / "lines")
    lines.add(b"whole\n")
    (place / "ballast").write_bytes(b"")
    subprocess.run(f"head -c 2M /dev/zero > {place / 'ballast'}", shell=True, capture_output=True)
    row = json.dumps({"text": "x" * 5000}).encode() + b"\n"
    for _ in range(3):
        lines.add(row)
    lines.close()
    assert "the last 3 lines could not be written" in caplog.text
    assert (place / "lines").read_bytes().startswith(b"whole\n")
    (place / "ballast").unlink()
    again = Lines(place / "lines")  # the part that went in is no line
    again.add(row)
    again.close()
    assert (place / "lines").read_bytes() == b"whole\n" + row


# --- the run directory is deleted or renamed ---


@pytest.mark.integration
@pytest.mark.parametrize(
    ("blow", "moment", "world"),
    [
        ("rm -rf {out}; sleep 0.1; rm -rf {out}", "step:5", 1),  # twice: a save may put names into it meanwhile
        ("mv {out} {out}-moved", "step:5", 2),
        ("rm -r {out}", "before a save:2", 1),
        pytest.param("mv {out} {out}-moved", "after pruning:3", 1, marks=pytest.mark.soak),
        pytest.param("rm -r {out}", "before a save:2", 2, marks=pytest.mark.soak),
    ],
)
def test_a_directory_that_is_deleted_or_renamed_ends_the_run(
    runs: Bench, tmp_path: Path, whole: Ended, blow: str, moment: str, world: int
) -> None:
    """With a clear error on all ranks, and without a folder of that name that has no configuration; a renamed
    directory goes on where it was.
    """
    out = tmp_path / "run"
    ended = runs.run(
        out, KEEP1, world, f"$BLOW@0:{moment}", BLOW=blow.format(out=out),
        FORKED_SET='{"cls.training.logger.LOOK_SECONDS": 0.0}',
    )  # fmt: skip
    assert ended.struck == [moment.rpartition(":")[0]]
    assert ended.codes == [2] * world and "Traceback" not in ended.output, ended.output
    assert ended.output.count(f"user error: out: {out} was deleted or renamed while the run was writing to it") == 1
    assert "the same command continues" not in ended.output and not out.exists()
    if blow.startswith("mv"):
        check_done(runs.run(tmp_path / "run-moved", KEEP1, world), whole, world)
