"""paths in options: ~ in every option, and places that cannot be written, as another user and on full disks."""

import dataclasses
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from cls.commands.arguments import COMMANDS
from cls.commands.main import parse_command
from cls.commands.parsing import out_of, parse_run
from cls.config import Run, change, diff
from cls.runtime.paths import PATHS, check_output, check_picture, command_line, elsewhere, name_problem, writing
from tests.harness import ROOT, environment
from tests.harness.untrained import untrained

HOME = os.path.expanduser("~")

# --- ~ ---

WORDS = {  # texts that are no paths
    "Run.recipe", "Recipes.name", "Data.image_column", "Data.label_column", "Model.backbone", "Model.head",
    "Track.project", "Track.name", "SweepOptions.launch", "TuneOptions.launch", "PlanOptions.gpu", "PlanOptions.time",
    "PackOptions.image_column", "PackOptions.label_column", "Check.image_column", "Check.label_column",
    "Predict.image_column", "Evaluate.image_column", "Explain.image_column", "ExportOptions.image_column",
    "BenchOptions.gpu", "Sweep.words", "Predict.device", "Evaluate.device", "Report.device", "Check.device",
    "SoupOptions.device", "Data.hold_out", "Explain.target", "Explain.device", "ExportOptions.push",
}  # fmt: skip


def texts(kind: type, found: set[str]) -> set[str]:
    """Class.field of each text, or tuple of texts, of a dataclass of options and those inside it."""
    for item in dataclasses.fields(kind):
        hint = get_type_hints(kind)[item.name]
        if dataclasses.is_dataclass(hint):
            texts(hint, found)
        elif hint is str or hint == tuple[str, ...]:
            found.add(f"{kind.__name__}.{item.name}")
    return found


def test_every_text_of_every_command_is_a_path_or_a_word() -> None:
    """A new option with a path must be expanded: name it in cls/runtime/paths.py; another text: in WORDS above."""
    found: set[str] = texts(Run, set())
    for command in COMMANDS.values():
        texts(command, found)
    known = {f"{kind}.{name}" for kind, names in PATHS.items() for name in names}
    words = WORDS | {"Model.freeze", "ExportOptions.format"}
    # label files, which may stand behind a split (val=~/val.csv), are expanded where they are looked for
    words |= {f"{kind}.{name}" for kind in ("Data", "PackOptions", "Check", "Evaluate")
              for name in ("labels", "id_column", "label_column", "label_pattern")}  # fmt: skip
    assert found - words == known


@pytest.mark.parametrize(
    ("argv", "field", "expected"),
    [
        (["predict", "~/run", "~/a", "~/b", "--out=~/o"], "run", f"{HOME}/run"),
        (["predict", "~/run", "~/a", "~/b", "--out=~/o"], "path", (f"{HOME}/a", f"{HOME}/b")),
        (["predict", "~/run", "~/a", "--out=~/o"], "out", f"{HOME}/o"),
        (["predict", "run", "-", "--out=-"], "path", ("-",)),
        (["report", "run", "--to=~/r.html"], "to", f"{HOME}/r.html"),
        (["explain", "~/run", "~/a", "--to=~/e.png"], "path", (f"{HOME}/a",)),
        (["compare", "~/a", "~/b", "--to=~/t.md"], "runs", (f"{HOME}/a", f"{HOME}/b")),
        (["compare", "a", "--baseline=~/a"], "baseline", f"{HOME}/a"),
        (["export", "run", "--to=~/e", "--images=~/i"], "options.images", f"{HOME}/i"),
        (["check", "~/photos", "--run=~/r", "--to=~/c.png"], "run", f"{HOME}/r"),
        (["pack", "~/photos", "--to=~root/p"], "to", f"{os.path.expanduser('~root')}/p"),
        (["doctor", "--out=~/r", "--data=~"], "data", HOME),
        (["show", "digits", "--to=~/d.png", "--data.path=~/p"], "run.data.path", f"{HOME}/p"),
        (["bench", "digits", "--out=~/b"], "run.out", f"{HOME}/b"),
        (["plan", "digits", "--gpu", "a6000", "--script=~/s.sh"], "options.script", f"{HOME}/s.sh"),
        (["sweep", "mlp-head/heads", "--slurm=~/s", "--out=~/o"], "options.slurm", f"{HOME}/s"),
        (["sweep", "mlp-head/heads", "--wandb", "~/w", "--out=~/o"], "fields.out", f"{HOME}/o"),
        (["sweep", "~/runs"], "name", f"{HOME}/runs"),
        (["compare", "a", "--curves=~/c.png"], "curves", f"{HOME}/c.png"),
        (["tune", "digits", "--slurm=~/s"], "options.slurm", f"{HOME}/s"),
        (["audit", "~/run"], "run", f"{HOME}/run"),
        (["evaluate", "~/run", "~/p"], "path", (f"{HOME}/p",)),
    ],
)
def test_a_home_directory_is_expanded_in_every_command(argv: list[str], field: str, expected: Any) -> None:
    found = parse_command(argv[0], argv[1:])
    for name in field.split("."):
        found = getattr(found, name)
    assert found == expected


def test_a_home_directory_is_expanded_for_a_run() -> None:
    run = parse_run(["digits", "--out=~/x", "--data.path", "~/p", "--data.copy=~/c", "--model.weights=~/w.pth"])
    assert (run.out, run.data.path, run.data.copy, run.model.weights) == tuple(
        f"{HOME}/{name}" for name in ("x", "p", "c", "w.pth")
    )
    assert parse_run(["digits", "--track.name=~x"]).track.name == "~x"  # no path
    assert out_of(["digits", "--out=~/x"]) == out_of(["digits", "--out", "~/x"]) == run.out
    assert out_of(["digits", "--out", "a", "--out=b"]) == parse_run(["digits", "--out", "a", "--out=b"]).out == "b"
    user = pwd.getpwuid(0)
    assert parse_run(["digits", f"--out=~{user.pw_name}/x"]).out == f"{user.pw_dir}/x"


def test_an_unknown_user_is_named_and_no_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out: ~nosuchuser/x: there is no user 'nosuchuser'; .* \./~nosuchuser/x"):
        parse_run(["digits", "--out=~nosuchuser/x"])
    assert out_of(["digits", "--out=~nosuchuser/x"]) == ""
    assert parse_run(["digits", "--out=./~nosuchuser/x"]).out == "./~nosuchuser/x"


def test_a_run_that_kept_a_path_with_a_tilde_is_the_same_run() -> None:
    old = change(Run(), data={"path": "~/photos"}, model={"weights": "~/w.pth"})
    assert diff(old, change(Run(), data={"path": f"{HOME}/photos"}, model={"weights": f"{HOME}/w.pth"})) == []
    assert len(diff(old, change(Run(), data={"path": f"{HOME}/others"}, model={"weights": f"{HOME}/w.pth"}))) == 1


# --- places that cannot be written ---


def said(message: str) -> list[str]:
    """The command at the end of a message, in words."""
    return shlex.split(message.rpartition("elsewhere with: ")[2])


def test_the_command_of_a_message_has_the_option_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["--to", "/x/a b.md"], ["--to=/x/a b.md"], []):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/cls", "compare", "r 1", *words, "--split", "test"])
        assert command_line({"to": elsewhere("/x/a b.md")}) == "cls compare 'r 1' --split test --to 'a b.md'"
    (tmp_path / "a b.md").write_text("mine")
    assert elsewhere("/x/a b.md") == "a b-2.md"  # a file that is there is not offered
    monkeypatch.setattr(sys, "argv", ["train.py", "digits", "--data.max_corrupt", "1", "--data.max-corrupt=2"])
    assert command_line({"data.max_corrupt": "3"}) == "python train.py digits --data.max_corrupt 3"
    monkeypatch.setattr(sys, "argv", ["/lib/cls/__main__.py", "predict", "r"])
    assert command_line({}) == "cls predict r"
    assert command_line({}, ("accelerate", "launch")) == "accelerate launch -m cls predict r"


def test_outputs_are_tried_before_the_work_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check_output("to", "")
    check_picture("to", "")
    check_picture("to", str(tmp_path / "x.PNG"))
    for name in ("x.jpg", "x", "x.png.txt"):
        with pytest.raises(ValueError, match=f"--to .*{name}: pictures are PNG files: name one that ends in .png"):
            check_picture("to", str(tmp_path / name))
    check_output("to", tmp_path / "new" / "deeper" / "x.md")
    check_output("to", tmp_path / "file")
    check_output("out", tmp_path / "new", folder=True)
    check_output("out", tmp_path, folder=True)
    for path, folder, words in (
        (tmp_path, False, "is a folder: name a file in it"),
        (tmp_path / "file", True, "is a file: name a folder"),
        (tmp_path / "file" / "x.md", False, "is a file): write elsewhere with: "),
        (tmp_path / "file" / "x", True, "is a file): write elsewhere with: "),
        (Path("/dev/null"), False, "is not a regular file"),
        (Path("/proc/x.md"), False, "cannot be written"),
        (tmp_path / ("x" * 300), False, "File name too long"),
    ):
        with pytest.raises(ValueError) as caught:
            check_output("to", path, folder=folder)
        assert words in str(caught.value) and str(path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and Path("/dev/null").is_char_device()


def test_an_error_while_writing_has_the_command_that_writes_elsewhere() -> None:
    for number, way in ((28, "free space, or write elsewhere with: "), (30, "): write elsewhere with: ")):
        with pytest.raises(ValueError) as caught, writing("to", "/x/table.md"):
            raise OSError(number, os.strerror(number))
        assert str(caught.value).startswith(f"to: /x/table.md cannot be written ({os.strerror(number)})")
        assert way in str(caught.value) and said(str(caught.value))[-2] == "--to"
    with pytest.raises(ValueError, match=r"^mine$"), writing("to", "x"):
        raise ValueError("mine")


NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture(scope="module")
def nobody() -> list[str]:
    """Words before a command that run it as a user who may read all files and write none of root's."""
    words = [*NOBODY, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # Python may lie in root's home
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, to become another user")
    if subprocess.run([*words, "true"], capture_output=True).returncode:
        pytest.skip("setpriv cannot change the user here")
    return words


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, nobody: list[str]) -> Iterator[tuple[Path, Path, dict[str, str]]]:
    """Somebody's run with photos beside it, and a folder and an environment of the other user."""
    root = tmp_path_factory.mktemp("users")
    untrained(root / "run", 3, {"size": 32}, {"backbone": "timm/test_resnet"})
    mine = root / "mine"
    mine.mkdir()
    os.chown(mine, 65534, 65534)
    for path in (root, *root.parents[:3]):  # pytest's own are closed to others
        path.chmod(path.stat().st_mode | 0o755)
    env = environment(PYTHONPATH=str(ROOT), HOME=str(mine), MPLCONFIGDIR=str(mine), CLS_CACHE=str(mine))
    yield root, mine, env | {"TMPDIR": str(mine)}


def as_other(nobody: list[str], mine: Path, env: dict[str, str], words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [*nobody, sys.executable, "-m", "cls", *words]
    return subprocess.run(command, cwd=mine, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.integration
def test_another_users_run_is_predicted_with_the_command_that_the_message_names(
    nobody: list[str], other: tuple[Path, Path, dict[str, str]], photos: Path
) -> None:
    """Its own directory is the default place, which only its owner may write."""
    root, mine, env = other
    shutil.copytree(photos / "test", root / "pictures")
    first = as_other(nobody, mine, env, ["predict", str(root / "run"), str(root / "pictures"), "--workers", "0"])
    assert first.returncode == 2 and "Traceback" not in first.stderr
    message = first.stderr.strip().splitlines()[-1]
    assert f"out: {root}/run/predict-pictures cannot be written (Permission denied): write elsewhere with: " in message
    words = said(message)
    assert words[0] == "cls" and words[-2:] == ["--out", "predict-pictures"]
    second = as_other(nobody, mine, env, words[1:])
    assert second.returncode == 0, second.stderr
    assert (mine / "predict-pictures" / "prediction.csv").read_text().count("\n") == 7


@pytest.mark.integration
def test_another_users_folder_is_no_place_for_a_table(
    nobody: list[str], other: tuple[Path, Path, dict[str, str]]
) -> None:
    """Said before the runs are read, in one line."""
    root, mine, env = other
    found = as_other(nobody, mine, env, ["compare", str(root / "run"), f"--to={root}/table.md"])
    assert found.returncode == 2
    assert found.stderr.strip() == (
        f"user error: to: {root}/table.md cannot be written (Permission denied): write elsewhere with: "
        f"cls compare {root}/run --to table.md"
    )


def test_a_full_disk_names_the_option(tmp_path: Path) -> None:
    """Before the work; with the command of the message it is done."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        (place / "ballast").write_bytes(bytes(8192))
        with pytest.raises(
            ValueError, match=r"No space left on device\): free space, or write elsewhere with: .*--to "
        ):
            check_output("to", place / "table.md")
    finally:
        subprocess.run(["umount", str(place)], check=True)


# --- names and locales ---


@pytest.mark.integration
def test_a_name_that_the_locale_cannot_read_blames_the_locale(tmp_path: Path) -> None:
    """Python takes LC_ALL=C for UTF-8, unless it is told not to."""
    (tmp_path / "kätze").mkdir()
    program = (
        "import sys; from pathlib import Path; from cls.data.folders.image_folder import *; "
        "import cls.data.sources as s; from cls.config import Data; s.load(Data(path=sys.argv[1]), 0)"
    )
    env = environment(PYTHONPATH=str(ROOT), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    for kind in ("a", "kätze"):
        (tmp_path / kind).mkdir(exist_ok=True)
        for i in range(3):
            (tmp_path / kind / f"{i}.jpg").write_bytes(b"x")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and "is not ascii" in last and "PYTHONUTF8=1" in last and "rename" not in last
    again = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], env=env | {"PYTHONUTF8": "1"}, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert name_problem() == "is not UTF-8; rename it"


def test_output_that_a_terminal_cannot_show_does_not_end_a_run() -> None:
    program = (
        "from cls.runtime.exit import ExitHandler\nwith ExitHandler('') as ending:\n"
        "    print('k\\xe4tze \\udcff')\n    ending.message = 'done'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(PYTHONPATH=str(ROOT), PYTHONIOENCODING="ascii"),
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "k\\xe4tze \\udcff\n"), done.stderr
