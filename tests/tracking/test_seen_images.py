"""Images that a run was trained on: they do not validate one that starts from its weights, and are noted elsewhere."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cls import recipes
from cls.commands.evaluate import evaluate_images
from cls.commands.options import EvaluateOptions
from cls.config import Run, change, to_yaml
from cls.data.same_files import also_in
from cls.data.sources import load, load_given
from cls.runtime.signals import StopSignal
from cls.tracking.run_data import keep, look
from cls.tracking.run_files import read_run_directory
from cls.tracking.seen_images import earlier_runs, reject_seen, seen_by
from tests.harness.untrained import member


def photos(root: Path, shift: int = 0) -> Path:
    """40 images of two classes, of different sizes in bytes; without a val folder."""
    rng = np.random.default_rng(shift)
    for name in ("ant", "bee"):
        for number in range(20):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (8, 8 + number + shift, 3), dtype=np.uint8)).save(path)
    return root


def begun(out: Path, run: Run) -> Run:
    """A run directory with best weights and the record of its images."""
    run = change(run, out=str(out))
    (out / "best").mkdir(parents=True)
    (out / "config.yaml").write_text(to_yaml(run))
    (out / "best" / "model.safetensors").touch()
    keep(out, look(load(run.data, run.seed)))
    return run


def start(root: str | Path, weights: str | Path = "none", seed: int = 0, **data: object) -> Run:
    run = change(recipes.get("best-baseline"), seed=seed, data={"path": str(root), **data})
    return change(run, model={"weights": str(weights)})


def check(run: Run) -> None:
    splits = load(run.data, run.seed)
    reject_seen(run, splits, look(splits).facts)


@pytest.mark.parametrize("place", ["", "best/model.safetensors"])
def test_another_seed_would_validate_on_images_that_were_trained_on(tmp_path: Path, place: str) -> None:
    root = photos(tmp_path / "photos")
    begun(tmp_path / "run", start(root))
    check(start(root, tmp_path / "run" / place))
    trained = set(load(start(root).data, 0).train["id"])
    val = load(start(root).data, 1).val
    assert val is not None
    seen = sum(name in trained for name in val["id"])
    assert 0 < seen <= 4
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/run was trained on {seen} of the 4 images .* \(--seed 0\), or give"
    ):
        check(start(root, tmp_path / "run" / place, seed=1))


def test_another_part_held_out(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    begun(tmp_path / "run", start(root, hold_out="1/5"))
    check(start(root, tmp_path / "run", seed=3, hold_out="1/5"))  # the same part for all seeds
    for part, advice in (("2/5", "--data.hold-out 1/5"), ("1/4", "--data.hold-out 1/5")):
        with pytest.raises(ValueError, match=rf"was trained on \d+ of the \d+ images .* \({advice}\)"):
            check(start(root, tmp_path / "run", hold_out=part))
    with pytest.raises(ValueError, match=r"\(--data.hold-out ''\), or"):
        check(start(root, begun(tmp_path / "drawn", start(root)).out, hold_out="2/5"))
    begun(tmp_path / "all", start(root, hold_out="none"))
    with pytest.raises(ValueError, match="was trained on 4 of the 4 images"):
        check(start(root, tmp_path / "all"))
    check(start(root, tmp_path / "all", hold_out="none"))  # nothing validates


def test_the_runs_before_it_count_too(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    begun(tmp_path / "first", start(root, seed=1))
    others = photos(tmp_path / "others", shift=50)
    begun(tmp_path / "second", start(others, tmp_path / "first"))
    with pytest.raises(ValueError, match=rf"{tmp_path}/first was trained on"):
        check(start(root, tmp_path / "second"))


def test_other_images_of_the_same_names_are_others(tmp_path: Path) -> None:
    begun(tmp_path / "run", start(photos(tmp_path / "photos")))
    check(start(photos(tmp_path / "others", shift=50), tmp_path / "run", seed=1))


def test_the_same_files_in_other_folders_are_the_same_images(tmp_path: Path) -> None:
    """As photos that were moved into a train folder after the first run."""
    root = photos(tmp_path / "photos")
    begun(tmp_path / "run", start(root))
    shutil.copytree(root, tmp_path / "sorted" / "train")
    with pytest.raises(ValueError, match=rf"{tmp_path}/run was trained on \d of the 4 images"):
        check(start(tmp_path / "sorted", tmp_path / "run", seed=1))


def test_images_are_the_same_by_name_and_bytes(tmp_path: Path) -> None:
    files = {
        "one/a/1.jpg": b"first", "one/a/2.jpg": b"other", "one/b/3.jpg": b"again", "one/b/4.jpg": b"",
        "two/1.jpg": b"first", "two/2.jpg": b"OTHER", "two/9.jpg": b"again", "two/4.jpg": b"", "two/missing.jpg": b"x",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    one, two = (load_given([str(tmp_path / name)], Run().data) for name in ("one", "two"))
    (tmp_path / "two/missing.jpg").unlink()
    same = dict(zip(two["id"], also_in(two, one).tolist(), strict=True))
    assert {name.rpartition("/")[2]: found for name, found in same.items()} == {
        "1.jpg": True, "2.jpg": False, "9.jpg": False, "4.jpg": False, "missing.jpg": False,
    }  # fmt: skip
    assert also_in(one, two).tolist() == [name.endswith("1.jpg") for name in one["id"]]
    assert also_in(two.select([]), one).tolist() == [] and not also_in(one, two.select([])).any()


def test_figures_of_images_that_a_run_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "photos")
    first, second = (member(tmp_path / name, root, ("ant", "bee"), seed=seed) for seed, name in enumerate("ab"))
    earlier = [read_run_directory(Path(name)) for name in (first, second)]
    trained = [set(load(run.data, run.seed).train["id"]) for run in earlier]
    copied = tmp_path / "copied"
    for name in sorted(trained[0] - trained[1])[:2] + sorted(trained[0] & trained[1])[:1]:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, copied / name)
    options = EvaluateOptions(device="cpu", workers=0)
    found = evaluate_images([first, second], str(copied), options, StopSignal())
    said = capsys.readouterr().err
    assert found is not None and found["trained_on"] == 3
    assert f"{first} was trained on 3 of these 3 images: figures of seen images are too good" in said
    assert f"{second} was trained on 1 of these 3 images" in said and f"cls evaluate {second})" in said
    val = load(earlier[0].data, 0).val
    seen = None if val is None else seen_by(earlier[0], Path(first), val)
    assert seen is not None and not seen.any()
    root.rename(tmp_path / "moved")
    found = evaluate_images([first], str(copied), options, StopSignal())
    assert found is not None and found["trained_on"] is None and "was trained on" not in capsys.readouterr().err


def test_what_cannot_be_read_any_more_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = photos(tmp_path / "photos")
    begun(tmp_path / "run", start(root))
    root.rename(tmp_path / "moved")
    with caplog.at_level(logging.WARNING, "cls"):
        check(start(tmp_path / "moved", tmp_path / "run", seed=1))
    assert f"{tmp_path}/run may have been trained on images that validate here" in caplog.text


def test_weights_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "plain.safetensors").touch()
    save_file({"a": torch.zeros(1)}, tmp_path / "others.safetensors", {"config": "no: [run"})
    (tmp_path / "config.yaml").write_text("of: other software")
    for weights in ("none", "DEFAULT", tmp_path / "plain.safetensors", tmp_path / "others.safetensors"):
        assert list(earlier_runs(start(tmp_path, weights))) == []


def test_weights_that_a_run_has_written_lead_to_its_images(tmp_path: Path) -> None:
    """A soup or an export has its configuration in the file; a checkpoint lies inside of its run."""
    root = photos(tmp_path / "photos")
    run = begun(tmp_path / "run", start(root))
    kept = tmp_path / "soup" / "best" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, kept, {"config": to_yaml(run)})
    saved = tmp_path / "run" / "checkpoints" / "step-0000004" / "model.safetensors"
    saved.parent.mkdir(parents=True)
    shutil.copy(kept, saved)
    shutil.copy(kept, tmp_path / "model.safetensors")
    for weights in (tmp_path / "soup", kept, saved, tmp_path / "model.safetensors"):
        check(start(root, weights))
        of = {kept: tmp_path / "soup", saved: tmp_path / "run"}.get(weights, weights)
        with pytest.raises(ValueError, match=rf"weights: {of} was trained on \d of the 4 images"):
            check(start(root, weights, seed=1))


def test_a_relative_path_of_an_earlier_run_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, others = photos(tmp_path / "project" / "photos"), photos(tmp_path / "project" / "others", shift=50)
    monkeypatch.chdir(tmp_path / "project")
    begun(tmp_path / "project/runs/first", start("photos", seed=1))
    begun(tmp_path / "project/runs/second", start("others", "runs/first"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"/project/runs/first was trained on"):
        check(start(root, tmp_path / "project/runs/second"))
    second = read_run_directory(tmp_path / "project/runs/second")
    rows = load_given([str(root)], second.data)
    seen = seen_by(second, tmp_path / "project/runs/second", rows)
    assert seen is not None and seen.sum() == 36  # of the 40, those that trained the first
    assert not np.array_equal(seen, seen_by(change(second, model={"weights": "none"}), others, rows))
    shutil.rmtree(tmp_path / "project/runs/first")
    assert seen_by(second, tmp_path / "project/runs/second", rows) is None
    with caplog.at_level(logging.WARNING, "cls"):
        check(start(root, tmp_path / "project/runs/second"))
    assert "runs/first may have been trained on images that validate here: it does not exist any more" in caplog.text


def test_the_advice_names_what_divides_the_images(tmp_path: Path) -> None:
    root = photos(tmp_path / "photos")
    begun(tmp_path / "run", start(root))
    with pytest.raises(ValueError, match=r"as that run did \(--data.val-fraction 0.1\), or give the data a val folder"):
        check(start(root, tmp_path / "run", val_fraction=0.3))
    shutil.copytree(root, tmp_path / "more")
    Image.new("RGB", (9, 90)).save(tmp_path / "more" / "ant" / "20.png")
    with pytest.raises(ValueError, match=r"seen images: give the data a val folder$"):
        check(start(tmp_path / "more", tmp_path / "run", val_fraction=0.1, hold_out=""))
