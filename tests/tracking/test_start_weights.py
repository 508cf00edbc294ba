"""A run that starts from another one's weights is not validated on what that one was trained on."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cls import recipes
from cls.config import Run, change, to_yaml
from cls.data.sources import load
from cls.tracking.run_data import keep, look
from cls.tracking.start_weights import reject_seen, source_of


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


def start(root: Path, weights: str | Path = "none", seed: int = 0, **data: object) -> Run:
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
    for part, advice in (("2/5", "--seed 0 --data.hold-out 1/5"), ("1/4", "--seed 0 --data.hold-out 1/5")):
        with pytest.raises(ValueError, match=rf"was trained on \d+ of the \d+ images .* \({advice}\)"):
            check(start(root, tmp_path / "run", hold_out=part))
    with pytest.raises(ValueError, match=r"\(--seed 0 --data.hold-out ''\), or"):
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


def test_what_cannot_be_read_any_more_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = photos(tmp_path / "photos")
    begun(tmp_path / "run", start(root))
    root.rename(tmp_path / "moved")
    with caplog.at_level(logging.WARNING, "cls"):
        check(start(tmp_path / "moved", tmp_path / "run", seed=1))
    assert f"{tmp_path}/run may have been trained on images that validate here" in caplog.text


def test_weights_that_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "plain.safetensors").touch()
    for weights in ("none", "DEFAULT", tmp_path / "plain.safetensors", tmp_path / "missing"):
        assert source_of(start(tmp_path, weights)) is None
