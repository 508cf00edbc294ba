"""A run killed anywhere, or moved to any number of processes, is the same run, bit for bit."""

import json
from pathlib import Path

import pytest

from cls.commands.audit import audit
from cls.tracking.events import read_events
from cls.training.checkpoint import checkpoints, verify
from tests.harness import SMALL
from tests.harness.records import Result, bits, images
from tests.harness.runs import Runs

pytestmark = pytest.mark.integration

METHOD = """
--model.backbone timm/test_resnet --augment.mixup 0.4 --augment.mix-probability 0.5 --augment.erase 0.3 --optim.ema 0.9
--optim.clip 1.0 --optim.schedule plateau --optim.plateau-on accuracy --optim.patience 0 --track.ledger True
--train.save-minutes 0.002 --train.keep 1
"""
FULL = [*SMALL, "--model.head", "64 bn relu dropout:0.5", *METHOD.split()]
STEPS, IMAGES, BATCH = 22, 100, 32  # 7 epochs that end inside batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("survival")


@pytest.fixture(scope="module")
def whole(runs: Runs, folder: Path) -> Result:
    """One process, never interrupted."""
    ended = runs.run(folder / "whole", FULL)
    assert ended.codes == [0], ended.output
    return ended


def check_survived(ended: Result, whole: Result, attempts: int) -> None:
    assert bits(ended) == bits(whole)
    assert sorted(images(ended.out)) == list(range(STEPS * BATCH))
    found = audit(ended.out, IMAGES, BATCH, balanced=False)
    assert found["problems"] == [] and found["ledger"] and found["samples"] == STEPS * BATCH
    assert len(found["attempts"]) == attempts
    assert not list((ended.out / "checkpoints").glob("damaged*")) and not list(ended.out.rglob(".*.tmp"))


def good_steps(out: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in checkpoints(out / "checkpoints") if not verify(path)]


STAGES = ("before a save", "between files", "before fsync", "before rename", "after rename", "before best",
          "after best", "after pruning")  # fmt: skip
POINTS = [
    *((1, f"step:{k}") for k in (2, 5, 8, 11, 15, 18, 21)),
    (1, "micro:26"), (1, "feed:50"), (1, "update:13"), (1, "evaluation:2"),
    (1, "before a save:2"), (1, "between files:2"), (1, "between files:6"), (1, "before fsync:3"),
    (1, "before rename:3"), (1, "after rename:2"), (1, "before best:2"), (1, "after best:1"), (1, "after pruning:2"),
    (2, "step:6"), (2, "micro:21"), (2, "update:17"), (2, "between files:3"), (2, "before rename:2"),
    (2, "after rename:3"), (2, "evaluation:1"),
]  # fmt: skip
SLICE = [(1, "step:11"), (1, "between files:6"), (1, "after rename:2"), (2, "micro:21")]


def survive(runs: Runs, folder: Path, whole: Result, world: int, moment: str) -> None:
    out = folder / f"{world}-{moment.replace(' ', '-').replace(':', '-')}"
    killed = runs.run(out, FULL, world, f"SIGKILL@0:{moment}")
    assert killed.codes == [-9] * world and killed.faults == [moment.split(":")[0]], killed.output
    assert not (out / "exit.json").exists()
    before = good_steps(out)
    again = runs.run(out, FULL, world)
    assert again.codes == [0] * world, again.output
    assert f"{world} process(es)" in again.output and f"step {max(before, default=0)} of {STEPS} ->" in again.output
    check_survived(again, whole, 2 if before or "build" not in moment else 1)


@pytest.mark.parametrize(("world", "moment"), [pytest.param(*SLICE[0], marks=pytest.mark.promise), *SLICE[1:]])
def test_a_run_killed_at_one_point(runs: Runs, folder: Path, whole: Result, world: int, moment: str) -> None:
    survive(runs, folder, whole, world, moment)


@pytest.mark.soak
@pytest.mark.parametrize(("world", "moment"), [point for point in POINTS if point not in SLICE])
def test_a_run_killed_at_any_point(runs: Runs, folder: Path, whole: Result, world: int, moment: str) -> None:
    survive(runs, folder, whole, world, moment)


def test_the_points_cover_what_they_should() -> None:
    assert len(POINTS) >= 20 and set(SLICE) <= set(POINTS) and {world for world, _ in POINTS} == {1, 2}
    assert set(STAGES) <= {moment.split(":")[0] for _, moment in POINTS}
    assert sum(moment.startswith(("step", "micro", "feed", "update")) for _, moment in POINTS) >= 10


def test_a_chain_of_four_two_three_and_one_processes(runs: Runs, folder: Path, whole: Result) -> None:
    """Each link is stopped inside an epoch by a signal to one rank only, which all ranks agree on."""
    out = folder / "chain"
    for world, fault in ((4, "SIGTERM@2:step:5"), (2, "SIGUSR1@1:step:4"), (3, "SIGINT@0:step:5")):
        ended = runs.run(out, [*FULL, "--train.save-minutes", "0"], world, fault)  # a save reads the flags at once
        assert ended.codes == [85] * world, ended.output
        assert ended.exit["outcome"] == "stopped" and ended.exit["reason"] == fault.split("@")[0]
        assert good_steps(out)[-1] == ended.exit["step"]
    ended = runs.run(out, FULL, 1, "scramble@0:step:1;scramble@0:micro:3;scramble@0:evaluation:1;scramble@0:feed:9")
    assert ended.codes == [0] and len(ended.faults) == 7, ended.output  # three signals before
    assert "Traceback" not in ended.output
    check_survived(ended, whole, 4)
    starts = [event for event in read_events(out) if event["event"] == "start"]
    assert [event["processes"] for event in starts] == [4, 2, 3, 1]
    # The signal comes in the k-th step of an attempt, the flag travels with that step and is read after the next one;
    # at steps 10 and 16 an epoch ends: there it is read at once, and its validation is left to the next attempt.
    assert [event["step"] for event in starts] == [0, 6, 10, 16]


def test_the_ledger_finds_what_is_planted(whole: Result, tmp_path: Path) -> None:
    """A control of the proof: a row too many, one too few, another image, other pixels."""
    (tmp_path / "ledger").mkdir()
    (tmp_path / "events.jsonl").write_bytes((whole.out / "events.jsonl").read_bytes())
    lines = (whole.out / "ledger" / "0000-0000.csv").read_text().splitlines(keepends=True)
    target = tmp_path / "ledger" / "0000-0000.csv"
    target.write_text("".join(lines))
    assert audit(tmp_path, IMAGES, BATCH, balanced=False)["problems"] == []
    target.write_text("".join([*lines, lines[40]]))
    assert "index 40: 2 times" in audit(tmp_path, IMAGES, BATCH, balanced=False)["problems"][0]
    target.write_text("".join(lines[:40] + lines[41:]))
    assert "index 40: 0 times" in audit(tmp_path, IMAGES, BATCH, balanced=False)["problems"][0]
    first, second = lines[3].split(","), lines[4].split(",")
    changed = ",".join([*first[:2], second[2], first[3]])
    target.write_text("".join([*lines[:3], changed, *lines[4:]]))
    assert "epoch 1: 1 images more than once" in audit(tmp_path, IMAGES, BATCH, balanced=False)["problems"][0]
    (tmp_path / "corrupt_images.csv").write_text("id,reason\n" + first[2].strip('"') + ",broken\n")
    assert audit(tmp_path, IMAGES, BATCH, balanced=False)["problems"] == []  # the other one stood in for it
    (tmp_path / "corrupt_images.csv").write_text("id,reason\n" + second[2].strip('"') + ",broken\n")
    assert "epoch 1: 1 images more than once" in audit(tmp_path, IMAGES, BATCH, balanced=False)["problems"][0]
    start = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(json.dumps(start | {"attempt": 1, "step": STEPS - 1}) + "\n")
    target.write_text("".join(lines))
    tail = [line.replace(line[-34:-1], "," + "0" * 32) for line in lines[-BATCH:]]
    (tmp_path / "ledger" / "0001-0000.csv").write_text("".join(tail))
    problems = audit(tmp_path, IMAGES, BATCH, balanced=False)["problems"]
    assert len(problems) == BATCH and "other pixels" in problems[0]
    target.unlink()  # as if the ledger had been off until the last step
    (tmp_path / "ledger" / "0001-0000.csv").write_text("".join(lines[-BATCH:]))
    found = audit(tmp_path, IMAGES, BATCH, balanced=False)
    assert (found["problems"], found["silent"], found["samples"]) == ([], [(0, STEPS - 1)], BATCH)
    (tmp_path / "ledger" / "0001-0000.csv").write_text("".join(lines[-BATCH:] + lines[-1:]))
    assert f"index {STEPS * BATCH - 1}: 2 times" in audit(tmp_path, IMAGES, BATCH, balanced=False)["problems"][0]
