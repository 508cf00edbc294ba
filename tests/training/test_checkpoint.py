"""Checkpoints are whole or absent, and what is read back are the bits that were written."""

import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from cls.config import Optim, Train, change, to_yaml
from cls.distributed.world import World
from cls.evaluation.model_file import read_header
from cls.models.weights import load_exact
from cls.recipes import get
from cls.runtime import files
from cls.training import checkpoint
from cls.training.checkpoint import HostCopies
from cls.training.optim import Schedule, build_optimizer, moving_average, parameter_groups
from cls.training.state import History, State

FILES = ("model.safetensors", "average.safetensors", "optimizer.safetensors", "progress.json", "manifest.json")
CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_size=1, device=CPU)  # it is not asked


def build(seed: int = 0, average: bool = True, name: str = "adamw") -> State:
    """A small state with everything in it; another seed gives other values everywhere."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 4))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    config = Optim(
        name=name, lr=0.01, schedule="plateau", patience=1, plateau_on="either", head_lr=3.0, decay_norms=False
    )  # type: ignore[arg-type]  # a literal
    optimizer = build_optimizer(parameter_groups(model, config, {"3.weight"}, 0.01), config)
    return State(
        model,
        optimizer,
        Schedule(optimizer, config, 10, 100),
        moving_average(model, 0.9 if average else 0.0),
        History(),
    )


def advance(state: State, first: int, last: int) -> None:
    """Training steps, each with an epoch's end."""
    for step in range(first, last):
        images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        state.optimizer.zero_grad()
        state.model(images.contiguous(memory_format=torch.channels_last)).square().mean().backward()
        state.update(0.5)
        loss = abs(torch.sin(torch.tensor(step * 1.7)).item())
        state.schedule.epoch(loss, 1 - loss)
        state.history.add(step + 1, 1 - loss, loss, Train())


def bits(state: State) -> dict[str, bytes | str]:
    """Everything that decides how a state continues."""
    found: dict[str, bytes | str] = {f"model.{k}": v.numpy().tobytes() for k, v in state.model.state_dict().items()}
    if state.average is not None:
        found |= {f"average.{k}": v.numpy().tobytes() for k, v in state.average.state_dict().items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{k}": v.numpy().tobytes() for k, v in values.items()}
    found["groups"] = repr([{k: v for k, v in g.items() if k != "params"} for g in state.optimizer.param_groups])
    found["schedule"], found["history"] = repr(state.schedule.state_dict()), repr(state.history)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of steps 2, 4 and 6, and beside them what a state had at step 4 and 6."""
    state, folder = build(), tmp_path / "checkpoints"
    for step in (2, 4, 6):
        advance(state, step - 2, step)
        save(folder, step, state)
    return folder


def save(folder: Path, step: int, state: State) -> Path:
    return checkpoint.write(folder, HostCopies().snapshot(step, state, True))


def restore(folder: Path, state: State) -> int:
    return checkpoint.restore(folder, state, ALONE)


def state_at(step: int) -> State:
    state = build()
    advance(state, 0, step)
    return state


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("average", [True, False])
def test_what_is_restored_are_the_bits_that_were_saved(tmp_path: Path, average: bool, name: str) -> None:
    state, other = build(0, average, name), build(1, average, name)
    advance(state, 0, 5)
    before = bits(state)
    path = save(tmp_path, 5, state)
    assert bits(state) == before  # saving changes nothing
    assert path == tmp_path / "step-0000005"
    assert sorted(p.name for p in path.iterdir()) == sorted(f for f in FILES if average or "average" not in f)
    assert [p for p in tmp_path.iterdir()] == [path]  # nothing left beside it
    assert {oct(p.stat().st_mode & 0o777) for p in path.iterdir()} == {"0o644"}

    assert bits(other) != before
    assert restore(tmp_path, other) == 5
    assert bits(other) == before
    assert other.model[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index,union-attr]  # a Sequential
    advance(state, 5, 9)
    advance(other, 5, 9)
    assert bits(other) == bits(state) != before


def test_no_checkpoint_is_step_zero_and_changes_nothing(tmp_path: Path) -> None:
    state = build()
    before = bits(state)
    assert restore(tmp_path / "nothing", state) == 0
    (tmp_path / "empty").mkdir()
    assert restore(tmp_path / "empty", state) == 0
    assert bits(state) == before


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """One bit in the middle; of the manifest in the first checksum, the only part that can matter."""
    data = bytearray(path.read_bytes())
    place = len(data) // 2 if path.name != "manifest.json" else data.index(b'": "') + 10
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, empty, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_one_falls_back_to_the_one_before(
    folder: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder / "step-0000006" / name)
    state = build(1)
    with caplog.at_level(logging.WARNING, "cls"):
        assert restore(folder, state) == 4
    assert bits(state) == bits(state_at(4))
    (record,) = caplog.records
    assert "step-0000006" in record.getMessage() and "cannot be used" in record.getMessage()
    if name != "manifest.json":
        assert name in record.getMessage()


def test_a_fallen_back_run_writes_the_damaged_step_anew(folder: Path) -> None:
    truncate(folder / "step-0000006" / "model.safetensors")
    state = build(1)
    restore(folder, state)
    advance(state, 4, 6)
    save(folder, 6, state)
    again = build(2)
    assert restore(folder, again) == 6
    assert bits(again) == bits(state_at(6))


def test_when_none_is_whole_the_run_is_not_started_over(folder: Path) -> None:
    for path in folder.iterdir():
        truncate(path / "optimizer.safetensors")
    with pytest.raises(ValueError) as caught:
        restore(folder, build(1))
    assert str(folder) in str(caught.value) and "none of 3 checkpoints can be used" in str(caught.value)


def test_an_interrupted_save_is_ignored_and_cleaned_by_the_next(folder: Path) -> None:
    aside = folder / ".step-0000008.tmp"
    shutil.copytree(folder / "step-0000006", aside)
    (aside / "manifest.json").unlink()
    state = build(1)
    assert restore(folder, state) == 6 and not aside.exists()
    checkpoint.prune(folder, 1, state.history)
    advance(state, 6, 8)
    save(folder, 8, state)
    assert not aside.exists()
    again = build(2)
    assert restore(folder, again) == 8 and bits(again) == bits(state_at(8))


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.witness),)


def forge(path: Path, name: str, data: bytes) -> None:
    """Other content of a checkpoint's file, with the checksum that fits it."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["sha256"][name] = files.sha256(path / name)
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.verify(path) == ""


@pytest.mark.parametrize("name", [name for name in FILES if name != "manifest.json"])
def test_nothing_is_unpickled(folder: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    witness, stream = tmp_path / "executed", io.BytesIO()
    torch.save({"state": Payload(witness)}, stream)
    for data in (pickle.dumps(Payload(witness)), stream.getvalue()):
        forge(folder / "step-0000006", name, data)
        state = build(1)
        assert restore(folder, state) == 4 and bits(state) == bits(state_at(4))
        assert name in caplog.text and not witness.exists()
        (aside,) = folder.glob("damaged-*")
        aside.rename(folder / "step-0000006")
    pickle.loads(pickle.dumps(Payload(witness)))
    assert witness.exists()  # the payload does work


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300) | st.text(max_size=100).map(str.encode), name=st.sampled_from(FILES))
def test_any_bytes_as_a_file_are_rejected_in_words(folder: Path, data: bytes, name: str) -> None:
    only = folder.parent / "only"
    shutil.rmtree(only, ignore_errors=True)
    shutil.copytree(folder / "step-0000006", only / "step-0000006")
    if name == "manifest.json":
        (only / "step-0000006" / name).write_bytes(data)
    else:
        forge(only / "step-0000006", name, data)
    with pytest.raises(ValueError, match="none of 1 checkpoints can be used"):
        restore(only, build(1))


@pytest.mark.parametrize("text", ['{"sha256": {"/dev/zero": "0"}}', "[" * 100_000, '{"sha256": 3}', "null"])
def test_a_hostile_manifest_is_damage(folder: Path, text: str) -> None:
    (folder / "step-0000006" / "manifest.json").write_text(text)
    assert checkpoint.verify(folder / "step-0000006")
    assert restore(folder, build(1)) == 4


def test_a_checkpoint_of_another_model_is_rejected_by_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = build(1)
    other.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="none of 3 checkpoints can be used"):
        restore(folder, other)
    assert "does not fit the model" in caplog.text and "step-0000006" in caplog.text
    assert steps_of(folder) == [2, 4, 6]  # nothing is set aside: the checkpoints may be good, the model another


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


@pytest.mark.parametrize(
    ("keep", "accuracy_step", "loss_step", "left"),
    [
        (2, 1, 3, [1, 3, 6, 7]),
        (1, 7, 7, [7]),
        (1, -1, -1, [7]),
        (3, 5, 2, [2, 5, 6, 7]),
        (9, 1, 1, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_pruning_keeps_the_last_and_both_best(
    tmp_path: Path, keep: int, accuracy_step: int, loss_step: int, left: list[int]
) -> None:
    state = build()
    for step in range(1, 8):
        save(tmp_path, step, state)
    checkpoint.prune(tmp_path, keep, History(best_accuracy_step=accuracy_step, best_loss_step=loss_step))
    assert steps_of(tmp_path) == left


def test_other_folders_among_the_checkpoints_harm_nothing(folder: Path) -> None:
    shutil.copytree(folder / "step-0000004", folder / "step-0000004-copy")
    state = build(1)
    assert restore(folder, state) == 6
    checkpoint.prune(folder, 1, History())
    assert (folder / "step-0000004-copy").is_dir() and (folder / "step-0000006").is_dir()


def test_ten_million_steps_sort_after_the_others(tmp_path: Path) -> None:
    state = build()
    for step in (9_999_999, 10_000_000):
        save(tmp_path, step, state)
    assert restore(tmp_path, build(1)) == 10_000_000


def test_a_step_saved_twice_has_two_names_and_the_second_counts(folder: Path) -> None:
    state = state_at(6)
    state.history.validated = 6
    assert save(folder, 6, state).name == "step-0000006-2"
    again = build(1)
    assert restore(folder, again) == 6 and again.history.validated == 6
    checkpoint.prune(folder, 1, History(best_accuracy_step=6, best_loss_step=2))
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000002", "step-0000006-2"]


# --- weights as one file ---


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.contiguous() for name, value in model.state_dict().items()}


RUN = get("digits")
STATISTICS = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
HEADER = {
    "config": to_yaml(RUN),
    "classes": json.dumps(["b", "ä", "10"]),
    "statistics": json.dumps(STATISTICS),
    "fallback": "2",
}


def test_weights_and_their_header_come_back(tmp_path: Path) -> None:
    path, state, other = tmp_path / "best" / "model.safetensors", build(), build(1)
    checkpoint.save_weights(path, tensors(state.model), HEADER)
    load_exact(other.model, path)
    for a, b in zip(state.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert a.equal(b)
    assert read_header(path) == (RUN, ("b", "ä", "10"), STATISTICS, 2)
    checkpoint.save_weights(path, tensors(other.model), HEADER | {"fallback": "1"})  # replaced whole
    assert read_header(path)[3] == 1
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_a_file_that_is_no_model_of_ours_is_a_value_error_naming_it(tmp_path: Path) -> None:
    model = build().model
    texts = {
        "garbage": b"not a model at all, but long enough to have a header length",
        "empty": b"",
        "pickle": pickle.dumps({"a": 1}),
    }
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
    whole = tmp_path / "whole"
    checkpoint.save_weights(whole, tensors(model), HEADER)
    (tmp_path / "truncated").write_bytes(whole.read_bytes()[:-100])
    checkpoint.save_weights(tmp_path / "no header", tensors(model), {})
    checkpoint.save_weights(
        tmp_path / "half a header", tensors(model), {k: v for k, v in HEADER.items() if k != "classes"}
    )
    checkpoint.save_weights(tmp_path / "a newer config", tensors(model), HEADER | {"config": "optim: {magic: 1}"})
    checkpoint.save_weights(tmp_path / "no yaml", tensors(model), HEADER | {"config": "a: ["})
    checkpoint.save_weights(tmp_path / "odd statistics", tensors(model), HEADER | {"statistics": "[1]"})
    (tmp_path / "a folder").mkdir()
    for path in [*tmp_path.iterdir(), tmp_path / "missing"]:
        if path == whole:
            continue
        with pytest.raises(ValueError) as caught:
            read_header(path)
        assert str(path) in str(caught.value)
        if path.name not in ("garbage", "empty", "pickle", "truncated"):
            assert "not a whole safetensors" not in str(caught.value), path.name  # it is one, or no file at all
        assert path.name != "a newer config" or "optim.magic" in str(caught.value)


@pytest.mark.parametrize("damage", [truncate, empty])
def test_damaged_weights_are_a_value_error_naming_the_file(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save_weights(path, tensors(build().model), HEADER)
    damage(path)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_exact(build().model, path)


def test_weights_of_another_structure_are_a_value_error_naming_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoint.save_weights(path, tensors(build().model), HEADER)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_exact(nn.Linear(2, 2), path)


def test_a_changed_run_is_still_read_from_an_old_header(tmp_path: Path) -> None:
    run = change(RUN, train={"batch": 64})
    checkpoint.save_weights(tmp_path / "m", tensors(build().model), HEADER | {"config": to_yaml(run)})
    assert read_header(tmp_path / "m")[0] == run
