"""A disk that is full, read-only, slow or missing, and images that vanish: the last good checkpoint always survives."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cls.tracking.events import read_events
from tests.harness import TINY, Mount
from tests.harness.records import Result, bits, saved, timeless
from tests.harness.runs import Runs

SOON = '{"cls.training.checkpoint_writer.RETRY_SECONDS": 0.0}'
KEEP1 = [*TINY, "--train.keep", "1"]


def commands(place: Path) -> dict[str, str]:
    """Shell commands for faults; a view mounted over the run directory makes new names read-only, not open files."""
    out, ballast = place / "run", place / "ballast"
    return {
        "FILL": f"head -c 200M /dev/zero > {ballast} 2>/dev/null; true",
        "FREE": f"rm {ballast}",
        "LOCK": f"mount --bind {out} {out} && mount -o remount,bind,ro {out}",
        "UNLOCK": f"umount {out}",
        "HARNESS_SET": SOON,
    }


def check_done(ended: Result, tiny: Result, world: int = 1) -> None:
    assert ended.codes == [0] * world and ended.exit["outcome"] == "done", ended.output
    assert bits(ended) == bits(tiny) and "Traceback" not in ended.output
    assert not list(ended.out.rglob(".*.tmp"))


def failures(out: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(out) if event["event"] == "save_failed"]


# --- the disk fills up ---


@pytest.mark.integration
def test_a_disk_that_is_too_small_is_rejected_before_training(runs: Runs, disk: Mount) -> None:
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
    runs: Runs, disk: Mount, tiny: Result, begin: str, end: str, reason: str, world: int
) -> None:
    """After the first checkpoint, until step 7 begins; rows of the record wait in memory meanwhile."""
    place = disk(60)
    fault = f"${begin}@0:after pruning:1;${end}@0:step:7"
    ended = runs.run(place / "run", KEEP1, world, fault, **commands(place))
    assert ended.faults == ["after pruning", "step"]
    check_done(ended, tiny, world)
    found = failures(ended.out)
    assert found and found[0]["reason"] == reason and found[0]["step"] > 3
    assert f"could not be written ({reason}); the last one is step-0000003" in ended.output
    assert [row["step"] for row in ended.rows if "train/loss" in row] == list(range(1, 9))
    assert saved(ended.out)[-1] == (8, 8)


@pytest.mark.integration
def test_rows_of_the_record_wait_for_the_disk(runs: Runs, disk: Mount) -> None:
    """A disk gives 4096 bytes at a time, which is some twenty rows: thirty steps need more."""
    args = [*KEEP1, "--train.batch", "4", "--track.ledger", "False"]
    place = disk(60)
    plain = runs.run(place / "plain", args)
    ended = runs.run(place / "run", args, 1, "$FILL@0:after pruning:1;$FREE@0:step:30", **commands(place))
    assert plain.codes == ended.codes == [0] and ended.faults == ["after pruning", "step"], ended.output
    assert ended.output.count("metrics.jsonl cannot be written (No space left on device)") == 1
    rows = [timeless(run.rows) for run in (ended, plain)]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0] if "train/loss" in row] == list(range(1, 31))
    assert saved(ended.out)[-1] == saved(plain.out)[-1] == (30, 30) and failures(ended.out)


@pytest.mark.integration
@pytest.mark.parametrize(("begin", "end"), [("FILL", "FREE"), pytest.param("LOCK", "UNLOCK", marks=pytest.mark.soak)])
def test_a_disk_in_trouble_to_the_end_is_one_clear_message(
    runs: Runs, disk: Mount, tiny: Result, begin: str, end: str
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
    check_done(again, tiny)


@pytest.mark.integration
@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_disk_that_is_full_at_the_first_save_ends_the_run(runs: Runs, disk: Mount, tiny: Result, world: int) -> None:
    """There is no checkpoint to resume from yet, so each further step would be lost time."""
    place = disk(60)
    ended = runs.run(place / "run", KEEP1, world, "$FILL@0:before a save:1", **commands(place))
    assert ended.codes[0] == 2 and all(ended.codes), ended.output
    assert f"user error: {place / 'run' / 'checkpoints'}: the first checkpoint could not be written" in ended.output
    assert "Traceback" not in ended.output and saved(ended.out) == []
    subprocess.run(commands(place)["FREE"], shell=True, check=True)
    check_done(runs.run(ended.out, KEEP1, world), tiny, world)


@pytest.mark.integration
def test_a_read_only_place_is_rejected_by_name(runs: Runs, disk: Mount) -> None:
    place = disk(20)
    (place / "run").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    log = place.parent / "log"
    log.mkdir()
    (log / "run").symlink_to(place / "run")  # notes of a run are kept beside the directory that it names
    ended = runs.run(log / "run", [*KEEP1])
    assert ended.codes == [2] and "Traceback" not in ended.output, ended.output
    assert "user error: out: " in ended.output and "Read-only file system" in ended.output


# --- a network file system ---


@pytest.mark.soak
def test_slow_renames_and_late_names_cost_time_only(runs: Runs, tmp_path: Path, tiny: Result) -> None:
    late = {"HARNESS_SLOW": "0.2", "HARNESS_LATE": "1.0"}
    stopped = runs.run(tmp_path / "run", KEEP1, 2, "SIGTERM@1:step:6", **late)
    assert stopped.codes == [85, 85], stopped.output
    check_done(runs.run(stopped.out, KEEP1, 2, **late), tiny, 2)


@pytest.mark.integration
@pytest.mark.parametrize("what", ["the checkpoint", "the best weights"])
def test_a_name_that_never_shows_up_is_an_error_on_all_ranks(
    runs: Runs, tmp_path: Path, tiny: Result, what: str
) -> None:
    first = runs.run(
        tmp_path / "run", KEEP1, 1, "SIGTERM@0:step:6" if what == "the checkpoint" else "SIGTERM@0:build:1"
    )
    assert first.codes == [85]
    never = {"HARNESS_LATE": "1e9", "HARNESS_SET": '{"cls.runtime.files.VISIBLE_SECONDS": 1.0}'}
    ended = runs.run(first.out, KEEP1, 2, **never)
    assert ended.codes == [2, 2] and ended.exit["outcome"] == "user_error", ended.output
    name = "manifest.json" if what == "the checkpoint" else "best/model.safetensors"
    assert f"{name} is not visible on this host" in ended.exit["reason"] and "Traceback" not in ended.output
    check_done(runs.run(first.out, KEEP1, 2), tiny, 2)


# --- images that vanish ---


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """48 training images in 12 classes, of their own: 3 steps an epoch."""
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path / "photos", [*KEEP1, "--data.limit", "0", "--data.path", str(tmp_path / "photos")]


@pytest.mark.integration
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_images_that_vanish_end_the_run_on_all_ranks(
    runs: Runs, tmp_path: Path, images: tuple[Path, list[str]], world: int
) -> None:
    folder, args = images
    ended = runs.run(tmp_path / "run", args, world, f"$GONE@{world - 1}:step:5", GONE=f"mv {folder} {folder}-away")
    assert 3 in ended.codes and set(ended.codes) <= {3, 1}, ended.output  # 1: the partner ended first
    assert ended.exit["outcome"] == "data" and ended.exit["code"] == 3 and "Traceback" not in ended.output
    assert saved(ended.out) == [(3, 3)]
    Path(f"{folder}-away").rename(folder)
    again = runs.run(tmp_path / "run", args, world)
    assert again.codes == [0] * world and "step 3 of 9 ->" in again.output, again.output


@pytest.mark.integration
def test_one_image_that_vanishes_is_replaced(runs: Runs, tmp_path: Path, images: tuple[Path, list[str]]) -> None:
    folder, args = images
    ended = runs.run(tmp_path / "run", args, 1, "$GONE@0:probe:1", GONE=f"rm {folder}/train/7/7-2.jpg")
    assert ended.codes == [0] and "corrupt training images so far: 1, replaced" in ended.output, ended.output
    lines = (ended.out / "corrupt_images.csv").read_text().splitlines()
    assert len(lines) == 2 and "7-2.jpg" in lines[1]


# --- the run directory is deleted or renamed ---


@pytest.mark.integration
@pytest.mark.parametrize(
    ("fault", "moment", "world"),
    [
        ("rm -rf {out}; sleep 0.1; rm -rf {out}", "step:5", 1),  # twice: a save may put names into it meanwhile
        ("mv {out} {out}-moved", "step:5", 2),
        ("rm -r {out}", "before a save:2", 1),
        pytest.param("mv {out} {out}-moved", "after pruning:3", 1, marks=pytest.mark.soak),
        pytest.param("rm -r {out}", "before a save:2", 2, marks=pytest.mark.soak),
    ],
)
def test_a_directory_that_is_deleted_or_renamed_ends_the_run(
    runs: Runs, tmp_path: Path, tiny: Result, fault: str, moment: str, world: int
) -> None:
    """With a clear error on all ranks, and without a folder of that name that has no configuration; a renamed
    run directory resumes where it was.
    """
    out = tmp_path / "run"
    ended = runs.run(
        out, KEEP1, world, f"$FAULT@0:{moment}", FAULT=fault.format(out=out),
        HARNESS_SET='{"cls.training.logger.LOOK_SECONDS": 0.0}',
    )  # fmt: skip
    assert ended.faults == [moment.rpartition(":")[0]]
    assert ended.codes == [2] * world and "Traceback" not in ended.output, ended.output
    assert ended.output.count(f"user error: out: {out} was deleted or renamed while the run was writing to it") == 1
    assert "the same command continues" not in ended.output and not out.exists()
    if fault.startswith("mv"):
        check_done(runs.run(tmp_path / "run-moved", KEEP1, world), tiny, world)
