"""``--start-from RUN``: a run's configuration in place of a recipe's, from its best weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cls.commands.main import parse_command
from cls.commands.parsing import parse_run
from cls.config import Run, change, flat, from_yaml, to_yaml


def run_directory(path: Path, **sections: Any) -> Run:
    """A run of the digits, to look at only: its weights are empty."""
    run = change(Run(), seed=3, data={"path": "digits", "copy": "/tmp/elsewhere"}, **sections)
    run = replace(run, out=str(path))
    (path / "best").mkdir(parents=True)
    (path / "best" / "model.safetensors").touch()
    (path / "config.yaml").write_text(to_yaml(run))
    return run


@pytest.mark.parametrize("words", [
    ["--start-from", "RUN"], ["--start-from=RUN"], ["digits", "--start-from", "RUN/"],
    ["--start-from", "x", "--start-from=RUN"],
])  # fmt: skip
def test_the_configuration_of_the_run_is_the_default(tmp_path: Path, words: list[str]) -> None:
    chosen = {"precision": "fp32", "channels_last": True, "max_steps": 20}  # by its device, and of a smoke run
    stored = run_directory(tmp_path / "run", train={"epochs": 4, **chosen}, optim={"lr": 0.5}, track={"name": "short"})
    run = parse_run([word.replace("RUN", str(tmp_path / "run")) for word in words])
    changed = {"out": "", "data.copy": "", "model.weights": str(tmp_path / "run"), "track.name": ""}
    changed |= {"train.precision": "auto", "train.channels_last": "auto", "train.max_steps": 0}
    assert flat(run) == flat(stored) | changed


def test_every_field_can_be_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_directory(tmp_path / "run")
    words = [
        "--seed",
        "7",
        "--train.epochs",
        "2.5",
        "--model.weights",
        "none",
        "--out",
        "longer",
        "--data.path",
        "photos",
    ]
    with pytest.raises(SystemExit) as left:
        parse_run(["--start-from", str(tmp_path / "run"), *words, "--show"])
    assert left.value.code == 0
    run = from_yaml(capsys.readouterr().out)
    assert (run.seed, run.train.epochs, run.model.weights, run.out) == (7, 2.5, "none", "longer")
    assert run.data.path == "photos" and run.recipe == "digits"


def test_a_directory_without_a_slash_is_no_name_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_directory(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert parse_run(["--start-from", "run"]).model.weights == "./run"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    run_directory(tmp_path / "run")
    for words, message in (
        (["--start-from", str(tmp_path)], "start-from: .* is not a run directory: it has no config.yaml"),
        (["--start-from"], "start-from: the option has no value; name the directory of a run"),
        (
            ["best", "--start-from", str(tmp_path / "run")],
            "start-from: .*run is digits, not best: leave out the recipe",
        ),
        (["--start-from", str(tmp_path / "run"), "--train.batch", "0"], r"train\.batch is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_run(words)
    (tmp_path / "run" / "best" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"start-from: .*best/model.safetensors does not exist: name a run in which"):
        parse_run(["--start-from", str(tmp_path / "run")])


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "run", ""],
        ["evaluate", "run", ""],
        ["check", ""],
        ["pack", "", "--to", "x"],
        ["explain", "run", "a.jpg", ""],
        ["compare", "", "b"],
    ],
)
def test_an_empty_word_is_an_unset_variable(words: list[str]) -> None:
    """As of "$PHOTOS": it is not the current directory, and not the run's own images."""
    with pytest.raises(ValueError, match="a word of the command line is empty"):
        parse_command(words[0], words[1:])
    assert parse_command("predict", ["run", "photos", "--out", ""]).out == ""
