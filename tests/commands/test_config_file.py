"""``--config FILE``: a file's fields count as if they were typed before those of the command line."""

import dataclasses
import os
import shlex
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from cls import recipes
from cls.commands.config_file import with_config
from cls.commands.main import parse_command
from cls.commands.parsing import out_of, parse_options, parse_run
from cls.config import Run, change, flat, from_yaml, to_yaml
from tests.harness import ROOT, environment
from tests.harness.records import Result, bits
from tests.harness.runs import Runs

PART = """\
recipe: mlp-head
seed: 7
data: {path: photos, labels: [train.csv, val=b.csv]}
augment: {tta: []}
optim: {lr: 1e-3, betas: [0.8, 0.99]}
model:
  head: ''
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my part.yaml"
    path.write_text(PART)
    return path


def wanted() -> Run:
    """PART over its recipe, by hand."""
    return change(
        recipes.get("mlp-head"), seed=7, data={"path": "photos", "labels": ("train.csv", "val=b.csv")},
        augment={"tta": ()}, optim={"lr": 1e-3, "betas": (0.8, 0.99)}, model={"head": ""},
    )  # fmt: skip


def test_a_part_is_over_its_recipe_and_under_the_command_line(file: Path) -> None:
    assert recipes.get("mlp-head").augment.tta and recipes.get("mlp-head").model.head  # the file switches both off
    for words in (["--config", str(file)], [f"--config={file}"], ["mlp-head", "--config", str(file)]):
        assert parse_run(words) == wanted()
    typed = ["--optim.lr=2", "--data.labels", "c.csv", "--config", str(file), "--augment.tta", "hflip"]
    expected = change(wanted(), optim={"lr": 2.0}, data={"labels": ("c.csv",)}, augment={"tta": ("hflip",)})
    assert parse_run(typed) == parse_run(["mlp-head", *typed]) == expected


def test_the_word_is_the_recipe_of_a_file_without_one(file: Path) -> None:
    file.write_text("optim: {lr: 0.5}\ndata: {path: photos}")
    for name in ("best", "cbam-mixup"):
        found = parse_run([name, "--config", str(file)])
        assert found == change(recipes.get(name), data={"path": "photos"}, optim={"lr": 0.5})


def test_the_file_on_the_page_of_commands_is_one(file: Path) -> None:
    page = (ROOT / "cls" / "commands" / "README.md").read_text()
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    run = parse_run(["--config", str(file)])
    assert (run.recipe, run.data.size, run.optim.betas, run.augment.tta) == ("mlp-head", 288, (0.9, 0.99), ())


@pytest.mark.parametrize("name", recipes.systems())
def test_what_show_prints_is_a_file_for_config(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*words: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            parse_run([*words, "--show"])
        return capsys.readouterr().out

    text = shown(name)
    (tmp_path / "shown.yaml").write_text(text)
    assert from_yaml(text) == recipes.get(name)
    assert shown("--config", str(tmp_path / "shown.yaml")) == text


def another(value: Any, hint: Any) -> Any:
    """Another value of a field, as no recipe has it."""
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        return tuple(another(0, kind) for kind in (kinds[0] if k is Ellipsis else k for k in kinds))
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint)[::-1] if choice != value)
    return {bool: not value, int: 12345, float: 1.25e-07, str: "-a 'b: #' é=\n\"c"}[hint]


def test_every_field_of_a_file_arrives(file: Path) -> None:
    """Texts with a leading dash, quotes and line ends, numbers as YAML writes them, empty and long tuples."""
    run = recipes.get("best")
    for section in ("data", "augment", "model", "optim", "train", "track"):
        part = getattr(run, section)
        hints = typing.get_type_hints(type(part))
        values = {name: another(value, hints[name]) for name, value in vars(part).items()}
        values |= {name: ("a b", "-") for name in values if hints[name] == tuple[str, ...]}
        run = change(run, **{section: values})
    run = dataclasses.replace(run, seed=9, out="-o ut")
    assert [name for name, value in flat(run).items() if value == flat(recipes.get("best"))[name]] == ["recipe"]
    file.write_text(to_yaml(run))
    name, *words = with_config(["--config", str(file)])
    assert parse_options(Run, recipes.get(name), words, "x", "x") == run
    assert out_of(["--config", str(file)]) == "-o ut"


def test_names_of_earlier_versions_are_read_and_overruled(file: Path) -> None:
    file.write_text("recipe: digits\ndata: {max_bad: 0.25}")
    assert parse_run(["--config", str(file)]).data.max_corrupt == 0.25
    for word in ("--data.max-bad=0.5", "--data.max-corrupt=0.5", "--data.max_corrupt=0.5"):
        assert parse_run(["--config", str(file), word]).data.max_corrupt == 0.5


def test_paths_are_those_of_the_command_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home directory is expanded; other paths are relative to the current directory, not to the file's."""
    file.write_text("recipe: digits\nout: ~/o\ndata: {path: ~/p}")
    monkeypatch.setenv("HOME", str(file.parent))
    words = ["--config", f"~/{file.name}"]
    run = parse_run(words)
    assert (run.out, run.data.path) == (f"{file.parent}/o", f"{file.parent}/p") and out_of(words) == run.out
    assert out_of([*words, "--out", "x"]) == out_of(["--out=x", *words]) == parse_run([*words, "--out", "x"]).out == "x"
    file.write_text("recipe: digits\nout: runs/a\ndata: {path: photos}")
    run = parse_run(words)
    assert (run.out, run.data.path) == ("runs/a", "photos") and out_of(words) == "runs/a"


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        ([], None, "there is no such file"),
        ([], "", "expected a mapping of sections, found nothing"),
        ([], "# only this\n", "found nothing"),
        ([], "- 1", "expected a mapping of sections, found a list"),
        ([], "optim: {lr: 1", "not YAML: .* line 1"),
        ([], "optim: {lrr: 1}", r"unknown field optim\.lrr; did you mean optim\.lr\?"),
        ([], "lr: 1", r"unknown field lr; did you mean optim\.lr\?"),
        ([], "optim.lr: 1", r"unknown field optim\.lr; did you mean optim: {lr: …}\?"),
        ([], "optim: {lr: fast}", r"optim\.lr must be a number, found fast"),
        ([], "seed: 1\ndata: {}\nseed: 1", "seed is there twice"),
        ([], "data: {path: a}\noptim: {}\ndata: {size: 9}", "data is there twice"),
        ([], "data: {path: a, 'path': b}", r"data\.path is there twice"),
        ([], "data: {max_bad: 0.1, max_corrupt: 0.1}", r"data\.max_corrupt is there twice"),
        ([], "optim: {<<: {lr: 1}}", r"merge keys \(<<\) are not supported: write the fields out"),
        ([], "recipe: bset", "unknown recipe 'bset'; did you mean best"),
        ([], "seed: 1", "has no recipe: add a line such as `recipe: best`, or name one as the first word"),
        (["best"], "recipe: digits", "recipe is digits, but the first word is best: leave out one of the two"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(
    words: list[str], text: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=f"^config: {file}:? .*{message}") as caught:
        parse_run([*words, "--config", str(file)])
    assert "\n" not in str(caught.value)
    assert out_of(["--out", "run", "--config", str(file)]) == "run"  # for exit.json


def test_what_is_no_file_or_no_text_is_named(file: Path) -> None:
    for path, message in (
        (file.parent, "it is a folder: name a file in it, such as config.yaml"),
        (Path(os.devnull), "it is not a regular file"),
        (file / "x", "there is no such file"),
        (file.parent / ("x" * 300), r"cannot be read \(File name too long\)"),
    ):
        with pytest.raises(ValueError, match=f"^config: {path}:? {message}"):
            parse_run(["--config", str(path)])
    file.write_bytes("recipe: digits".encode("utf-16"))
    with pytest.raises(ValueError, match=r"is not UTF-8 \(byte 0\): save it as UTF-8 text"):
        parse_run(["--config", str(file)])


def test_the_values_are_checked_like_those_of_the_command_line(file: Path) -> None:
    for text, message in (("train: {batch: 0}", r"train\.batch is 0"), ("augment: {order: [frame]}", "augment.order")):
        file.write_text(f"recipe: best\ndata: {{path: x}}\n{text}")
        with pytest.raises(ValueError, match=message):
            parse_run(["--config", str(file)])


def test_there_is_one_file_or_another_run(file: Path) -> None:
    for words, message in (
        (["--config"], "the option has no value"),
        (["--config="], "the option has no value"),
        (["--config", "--seed", "1"], "the option has no value"),
        (["--config", str(file), f"--config={file}"], "config is given twice: put the fields into one file"),
        (["--config", str(file), "--start-from", "runs/a"], "--start-from takes the configuration of its run"),
        (["--start-from=runs/a", "--config", str(file)], "--start-from takes the configuration of its run"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_run(words)


# --- the commands ---


@pytest.mark.parametrize("command", ["show", "plan", "tune", "bench", "fetch"])
def test_every_command_that_takes_a_run_takes_the_file(command: str, file: Path) -> None:
    assert parse_command(command, ["--config", str(file)]).run == wanted()
    found = parse_command(command, ["mlp-head", "--config", str(file), "--optim.lr", "3"])
    assert found.run == change(wanted(), optim={"lr": 3.0})


@pytest.mark.parametrize("command", ["show", "sweep"])
def test_the_help_names_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command(command, ["--help"])
    assert "--config FILE takes fields from a YAML file" in " ".join(capsys.readouterr().out.split())


def test_all_rows_of_a_sweep_have_the_fields_of_the_file(file: Path) -> None:
    """As words of each member's command: a job does not need the file."""
    text = "data: {path: my photos}\nout: there\nmodel: {freeze: []}\noptim: {betas: [0.8, 0.9], lr: 1e-3}"
    file.write_text(text)
    typed = ["--data.path", "my photos", "--model.freeze", "--optim.betas", "0.8", "0.9"]
    found = parse_command("sweep", ["mlp-head/heads", "--seeds", "2", "--config", str(file), "--optim.lr=2"])
    expected = parse_command("sweep", ["mlp-head/heads", "--seeds", "2", "--out", "there", *typed, "--optim.lr=2"])
    assert found == expected and "--config" not in found.words
    with pytest.raises(ValueError, match="these options need a sweep as the first word"):
        parse_command("sweep", ["--config", str(file)]).do(None)
    file.write_text(f"recipe: best\n{text}")
    with pytest.raises(ValueError, match=r"recipe is best: a sweep's rows are its recipes, leave it out"):
        parse_command("sweep", ["mlp-head/heads", "--config", str(file)])


# --- processes ---


@pytest.mark.integration
def test_the_configuration_of_a_run_makes_the_same_run(runs: Runs, tiny: Result, tmp_path: Path) -> None:
    """Its config.yaml names its directory: continued, a second run needs --out."""
    own = str(tiny.out / "config.yaml")
    again = runs.run(tmp_path / "run", ["--config", own])
    assert again.codes == [0] and bits(again) == bits(tiny), again.output
    assert parse_run(["--config", own]).out == str(tiny.out)

    train, stored = [sys.executable, str(ROOT / "train.py"), "--config", str(tmp_path / "run" / "config.yaml")], {}
    for words, code, message in (
        ([], 0, "is finished"),
        (["--seed", "1"], 2, "holds a run with another configuration; use another --out:\n  seed: 0 -> 1"),
    ):
        stored = bits(again)
        done = subprocess.run([*train, *words], env=environment(), cwd=tmp_path, capture_output=True, text=True)
        text = done.stdout + done.stderr
        assert done.returncode == code and f"{again.out} " in text and message in text, text
        assert bits(Result([0], "", again.out)) == stored  # untouched


@pytest.mark.integration
def test_the_command_line_that_the_job_script_reads(file: Path) -> None:
    command = [sys.executable, "-m", "cls.commands.config_file"]
    words = ["--optim.lr", "2 ", "--config", str(file), "--out", "a\nb"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == with_config(words) and done.stdout.endswith("--out\0a\nb\0")
    failed = subprocess.run([*command, *shlex.split("--config nowhere.yaml")], cwd=ROOT, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "user error: config: nowhere.yaml: there is no such file\n"
