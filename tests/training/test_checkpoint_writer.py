"""The checkpoint writer, one call at a time: what is kept, when a save fails, and the best weights."""

import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cls.config import Run, Train, change
from cls.tracking.events import EventLog, read_events
from cls.tracking.run_dir import RunDir
from cls.training import checkpoint, checkpoint_writer
from cls.training.checkpoint import checkpoints, restore, verify
from cls.training.checkpoint_writer import CheckpointWriter, best_step, repair_best
from cls.training.state import History, State
from tests.harness import Mount
from tests.training.test_checkpoint import ALONE, advance, build
from tests.training.test_checkpoint import bits as state_bits


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


def test_predictions_of_earlier_best_weights_are_deleted_with_them(tmp_path: Path) -> None:
    """Of a run that was made longer: until its own are written, nothing shows figures of weights that are replaced."""
    files = [tmp_path / name for name in ("predictions/val.parquet", "predictions/test.parquet", "report.html",
                                          "prediction.csv", "prediction.zip")]  # fmt: skip
    state = build()
    run_epochs(tmp_path, state, 0, 1)
    for file in (*files, tmp_path / "predictions" / "mine.txt"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    run_epochs(tmp_path, state, 1, 2)  # not better: the best weights and what they predict stay
    assert best_step(tmp_path) == 1 and all(file.exists() for file in files)
    shutil.rmtree(tmp_path / "best")
    run_epochs(tmp_path, build(), 0, 1)
    assert best_step(tmp_path) == 1 and not any(file.exists() for file in files)
    assert (tmp_path / "predictions" / "mine.txt").exists()


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
        repair_best(tmp_path, state, {"note": "kept"}, Train())
        assert best_step(tmp_path) == 1 and weights_of(file) == weights
    checkpoint.save_weights(file, load_file(file), {"step": "7"})  # of an epoch that was lost with its checkpoint
    repair_best(tmp_path, state, {"note": "kept"}, Train())
    assert best_step(tmp_path) == 1 and weights_of(file) == weights
    with safe_open(file, framework="pt") as found:
        assert found.metadata() == {"note": "kept", "step": "1"}


def test_without_a_best_epoch_the_last_validated_weights_are_made_again(tmp_path: Path) -> None:
    """As at the end of a run without validation images that was killed before it wrote them."""
    state, file = build(), tmp_path / "best" / "model.safetensors"
    run_epochs(tmp_path, state, 0, 2)
    state.history = History(validated=2)
    file.unlink()
    repair_best(tmp_path, state, {}, Train())
    assert best_step(tmp_path) == 2 and load_file(file).keys() == state.model.state_dict().keys()
    last = load_file(tmp_path / "checkpoints" / "step-0000002" / "average.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in load_file(file).items())


def test_best_weights_that_no_checkpoint_has_are_reported_as_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = build()
    run_epochs(tmp_path, state, 0, 3)
    best = tmp_path / "best" / "model.safetensors"
    (tmp_path / "checkpoints" / "step-0000001" / "average.safetensors").write_bytes(b"")
    best.unlink()
    again = build(seed=9)
    assert restore(tmp_path / "checkpoints", again, ALONE) == 3 and state_bits(again) == state_bits(state)
    repair_best(tmp_path, again, {}, Train())
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
    """A file in the way of the checkpoints makes each save fail; the best epoch is over by the time it is deleted."""
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


def test_space_for_one_checkpoint_and_the_best_weights_is_required(disk: Mount) -> None:
    state = build()  # 1380 parameters and 17 buffer values: model, average, two moments, best weights
    checkpoint_writer.check_disk_space(disk(1), state)
    small = disk(1)
    (small / "ballast").write_bytes(bytes(2**20 - 4096))
    with pytest.raises(ValueError, match=r"^out: 0 MB are free in .*disk1; .*checkpoint and the best weights"):
        checkpoint_writer.check_disk_space(small, state)
