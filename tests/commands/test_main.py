"""The ``cls`` command as a person types it."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cls.commands.arguments import COMMANDS
from cls.commands.main import main, parse_command
from cls.config import Run, to_yaml
from cls.runtime.signals import StopSignal
from tests.harness import ROOT, environment

CLS = [sys.executable, "-c", "from cls.commands.main import main; main()"]


def cls(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = environment(PYTHONPATH=str(ROOT))
    return subprocess.run([*CLS, *words], env=env, capture_output=True, text=True, timeout=120, cwd=cwd)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_without_loading_torch(name: str) -> None:
    program = "import sys; from cls.commands.main import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, name, "--help"], env=environment(), capture_output=True,
                          text=True, timeout=60, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0 and done.stdout.rstrip().endswith("False"), done.stderr
    doc = " ".join((COMMANDS[name].__doc__ or "").split())
    assert doc[:60] in " ".join(done.stdout.split()) and "--json" in done.stdout


@pytest.mark.integration
def test_a_plan_is_a_document_and_a_line_to_submit(tmp_path: Path) -> None:
    done = cls("plan", "digits", "--gpu", "3090", "--gpus", "2", "--seed", "3", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["fits"] and document["micro_batches_per_gpu"] == [4, 4] and document["training_images"] == 1438
    cores = document["cores_per_node"]
    line = f"sbatch --nodes=1 --gpus-per-node=2 --cpus-per-task={cores} slurm/train.sh digits --seed 3"
    assert document["sbatch"] == line and cores >= 2
    assert document["sbatch"] in done.stderr.splitlines()  # whole, to be copied


def test_a_figure_that_does_not_exist_is_null_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the recall of a class without images, or a loss that is not finite."""

    class Given:
        resumes = False

        @classmethod
        def parse(cls, argv: list[str], text: str) -> "Given":
            return cls()

        def do(self, stop: StopSignal) -> tuple[dict[str, Any], None]:
            return {"classes": {"ant": {"recall": math.nan}}, "losses": [1.5, math.inf], "bounds": (-math.inf, 2)}, None

    monkeypatch.setitem(COMMANDS, "given", Given)
    monkeypatch.setattr(sys, "argv", ["cls", "given", "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()

    def reject(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(capsys.readouterr().out, parse_constant=reject) == {
        "classes": {"ant": {"recall": None}}, "losses": [1.5, None], "bounds": [None, 2],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("plan", "digits"), "gpu: name it (--gpu a6000)"),
        (("plan", "digits", "--gpu", "a6001"), "did you mean 'RTX A6000'?"),
        (("plan", "mlp-head", "--gpu", "a6000"), "data.path is empty"),
        (("sweep", "cls"), "cls holds no run directories"),
        (("audit", "cls"), "cls is not a run directory"),
        (("show", "digits", "--count", "0"), "--count is 0, --step 0: give at least one image"),
        (("check", "digits", "--to", "tests"), "to: tests is a folder: name a file in it"),
    ],
)
def test_a_bad_command_is_one_message(words: tuple[str, ...], text: str) -> None:
    done = cls(*words)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("user error: ") and text in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [*CLS],
        [*CLS, "sweep", "--json"],
        [*CLS, "bench", "--help"],
        [sys.executable, "train.py", "--show"],
        [sys.executable, "train.py", "--help"],
    ],
    ids=" ".join,
)
def test_standard_output_may_be_closed(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=env, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, cwd=ROOT)
    os.close(writer)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_run_without_data_cannot_be_audited(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(Run()))
    done = cls("audit", str(tmp_path))
    assert done.returncode == 2 and f"user error: {tmp_path} ended before its images were read" in done.stderr


def test_a_run_with_local_files_only_needs_nothing_fetched() -> None:
    done = cls("fetch", "digits", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["files"] == [] and "nothing to fetch" in done.stderr


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("check", "--data.path", "t/a b"), "t/a b"),
        (("check", "--data.path=t/photos", "--data.labels", "a.csv", "b.csv"), "t/photos"),
        (("check", "--data.labels", "a.csv", "--data.path", "t/photos", "--seed", "1"), "t/photos"),
        (("check", "t", "--data.path", "t/photos"), "t/photos"),  # the last command, with what its message says
        (("pack", "t", "--to", "shards", "--data.path", "t/photos"), "t/photos"),
        (("pack", "--data.path", "t/photos", "--to", "shards"), "t/photos"),
        (("evaluate", "RUN", "--data.path", "t/photos"), "t/photos"),
        (("evaluate", "--data.path", "t/photos", "RUN"), "t/photos"),
        (("evaluate", "RUN", "t", "--data.path=t/photos", "--device", "cpu"), "t/photos"),
        (("evaluate", "--device", "cpu", "RUN", "--data.path", "t/photos"), "t/photos"),
        (("predict", "RUN", "t", "--data.path", "t/photos", "--top-k", "1"), "t/photos"),
        (("explain", "RUN", "t", "--data.path", "t/photos"), "t/photos"),
        (("check", "t"), "t"),
    ],
)
def test_commands_take_the_path_as_messages_print_it(words: tuple[str, ...], path: str) -> None:
    command = parse_command(words[0], [*words[1:]])
    assert command.path in (path, (path,)) and getattr(command, "run", "RUN") in ("RUN", "")


def test_an_export_takes_the_path_for_its_images() -> None:
    command = parse_command("export", ["RUN", "--to", "x", "--images", "t", "--data.path", "t/photos"])
    assert command.options.images == "t/photos"


@pytest.mark.integration
def test_what_a_message_of_check_prints_can_be_typed(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "t/photos" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 40), (90 * number, 9, 99 if name == "cat" else 9)).save(
                tmp_path / f"t/photos/{name}/{number}.png"
            )
    done = cls("check", "t", cwd=tmp_path)
    option = re.findall(r"--data\.path \S+", done.stderr)
    assert done.returncode == 2 and option == ["--data.path t/photos"], done.stderr
    done = cls("check", *option[0].split(), "--workers", "0", "--json", cwd=tmp_path)
    assert done.returncode in (0, 3) and json.loads(done.stdout), done.stderr


def test_a_stopped_command_that_can_continue_says_so() -> None:
    assert {name for name, kind in COMMANDS.items() if kind.resumes} == {"pack", "sweep", "tune"}
    program = (
        "import sys; from cls.commands import arguments, main; from cls.runtime.signals import Stopped\n"
        "def do(self, stop): raise Stopped('SIGINT')\n"
        "arguments.Pack.do = arguments.Compare.do = do\nmain.main()"
    )
    for words, said in (
        (["pack", "photos", "--to", "packed"], "stopped: SIGINT\nthe same command continues\n"),
        (["compare", "a", "b"], "stopped: SIGINT\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=environment(), cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (85, said)
