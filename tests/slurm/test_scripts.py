"""What the scripts of slurm/ start, and how a job ends, on a real SLURM; the launcher is fake_launcher.py."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT, environment, slurm
from tests.harness.slurm import Job, Slurm

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(slurm.reason()), reason=slurm.reason())]

ONE = ("--gpus-per-node=1", "--cpus-per-task=1")
SCRIPTS = ("train", "a6000", "rtx3090", "predict", "sweep")


@pytest.fixture(scope="module")
def world() -> Iterator[Slurm]:
    with slurm.started() as found:
        yield found


class Fake:
    """Jobs of one test: submitted from its own folder, their starts noted by the fake launcher."""

    def __init__(self, world: Slurm, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.here, self.notes = folder / "sub mitted", folder / "notes"
        for made in (self.here, self.notes, folder / "venv" / "bin"):
            made.mkdir(parents=True)
        launcher = folder / "venv" / "bin" / "accelerate"
        launcher.write_text(f"#!{sys.executable}\n{(ROOT / 'tests' / 'harness' / 'fake_launcher.py').read_text()}")
        launcher.chmod(0o755)
        (folder / "venv" / "bin" / "activate").write_text(f"PATH={shlex.quote(str(folder / 'venv' / 'bin'))}:$PATH\n")
        self.env = {"CLS_VENV": str(folder / "venv"), "FAKE_NOTES": str(self.notes), "FAKE_RUN": "0.2"}
        self.script = world.checkout / "slurm" / "train.sh"

    def sbatch(self, *words: str | Path, cwd: Path | None = None, **env: str) -> Job:
        job = self.world.sbatch(cwd or self.here, *map(str, words), **self.env | env)
        return Job(self.world, job.id, self.folder)

    def output(self, job: Job) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.rglob(f"*-{job.id}*.out")))

    def starts(self, job: Job) -> list[dict[str, Any]]:
        file = self.notes / f"{job.id}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def attempt(self, job: Job, number: int, out: Path | None = None) -> None:
        """Wait until the launcher of that attempt has been started, and is a run in ``out``."""
        job.until(lambda: any(start["attempt"] == str(number) for start in self.starts(job)))
        if out:
            job.until(lambda: (out / "running").exists() and not (out / "exit.json").exists())


@pytest.fixture
def fake(world: Slurm, tmp_path: Path) -> Fake:
    return Fake(world, tmp_path)


def option(start: dict[str, Any], name: str) -> str:
    return str(start["argv"][start["argv"].index(name) + 1])


def onward(text: str) -> str:
    found = re.search(r"Resume this run with: (sbatch .*)", text)
    assert found, text
    return found[1]


# --- 22: where the checkout is ---


def test_every_script_finds_the_checkout_with_the_same_lines() -> None:
    blocks = set()
    for name in SCRIPTS:
        text = (ROOT / "slurm" / f"{name}.sh").read_text()
        found = re.search(r"^# --- the checkout: .*?^# ---$", text, re.MULTILINE | re.DOTALL)
        assert found, name
        blocks.add(found[0])
    assert len(blocks) == 1


def test_a_script_works_as_a_copy_a_link_from_anywhere_and_in_any_directory(fake: Fake) -> None:
    checkout, here, slurm = fake.world.checkout, fake.here, fake.world.checkout / "slurm"
    (slurm / "our own").mkdir()
    (here / "else where").mkdir()
    copies = {"v100.sh": "a6000", "our own/x y.sh": "rtx3090", "array.sh": "sweep", "p.sh": "predict"}
    for copy, original in copies.items():
        shutil.copy(slurm / f"{original}.sh", slurm / copy)
    for link, target in {"a link.sh": slurm / "train.sh", "copy link.sh": slurm / "v100.sh", "whole": checkout}.items():
        (here / link).symlink_to(target)
    shutil.copy(slurm / "train.sh", here / "far away.sh")
    (here / "lines.txt").write_text("digits --seed 1\n")
    far = {"CLS_HOME": str(checkout)}
    # name: words of sbatch, the directory of the sbatch, the directory of the run, variables
    cases: dict[str, tuple[list[str | Path], Path, Path, dict[str, str]]] = {
        "by its path": ([slurm / "train.sh", "digits", "--x", "a  b"], here, here, {}),
        "a copy": ([slurm / "v100.sh"], here, here, {}),
        "a copy below": ([slurm / "our own" / "x y.sh", "mlp-head"], here, here, {}),
        "a copy of the array": (["--array=1", slurm / "array.sh", "lines.txt"], here, here, {}),
        "a copy of predict": ([slurm / "p.sh", "run", "photos"], here, here, {}),
        "a link": (["a link.sh"], here, here, {}),
        "a link to a copy": (["copy link.sh", "digits"], here, here, {}),
        "a linked checkout": (["whole/slurm/rtx3090.sh"], here, here, {}),
        "another directory": (["--chdir", str(here / "else where"), slurm / "train.sh"], here, here / "else where", {}),
        "a link, another directory": (["--chdir=else where", "a link.sh"], here, here / "else where", {}),
        "a link above": (["../a link.sh"], here / "else where", here / "else where", {}),
        "relative": (["--chdir", str(here), "slurm/../slurm/train.sh"], checkout, here, {}),
        "from a pipe": (["--chdir", str(here)], checkout, here, {}),
        "wrapped": (["--chdir", str(here), "--wrap", f"'{slurm}/train.sh' digits"], checkout, here, {}),
        "a copy far away, inside the checkout": (["--chdir", str(here), here / "far away.sh"], slurm, here, {}),
        "a copy far away, anywhere": (["far away.sh"], here, here, far),
    }
    jobs = {}
    for name, (words, submitted, _, env) in cases.items():
        out = ("--output", str(fake.folder / "cls-%j.out"))
        words = [*out, *(() if words[-1] == "mlp-head" or "rtx" in str(words[-1]) else ("-p", "a6000")), *ONE, *words]
        pipe = (slurm / "train.sh").read_text() if name == "from a pipe" else None
        env = fake.world.environment(**fake.env, **env)
        done = subprocess.run(["sbatch", "--parsable", *map(str, words)], cwd=submitted, env=env, input=pipe,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stderr}"
        jobs[name] = Job(fake.world, done.stdout.strip(), fake.folder)
    for name, (_, _, directory, _) in cases.items():
        jobs[name].until(lambda job=jobs[name]: not fake.world.squeue(job.id, "%T"))
        text = fake.output(jobs[name])
        array = "_1" if "array" in name else ""
        assert Job(fake.world, jobs[name].id + array, fake.folder).field("JobState") == "COMPLETED", f"{name}: {text}"
        (start,) = fake.starts(jobs[name])
        assert option(start, "--config_file") == f"{checkout}/accelerate_configs/one_gpu.yaml", name
        assert Path(start["cwd"]) == directory, name
        assert option(start, "-m") == "cls" if "predict" in name else f"{checkout}/train.py" in start["argv"], name
    (start,) = fake.starts(jobs["by its path"])
    assert start["argv"][-5:] == ["digits", "--x", "a  b", "--out", f"runs/digits-{jobs['by its path'].id}"]


@pytest.mark.parametrize("home", ["", "nowhere"])
def test_without_a_checkout_the_message_says_what_to_set_and_that_works(fake: Fake, home: str) -> None:
    shutil.copy(fake.script, fake.here / "far.sh")
    env = {"CLS_HOME": home} if home else {}
    job = fake.sbatch(*ONE, "far.sh", "digits", **env)
    assert job.wait() == "FAILED 2:0"
    text = fake.output(job)
    assert "export CLS_HOME=DIRECTORY, the one with train.py" in text and "pipe" not in text
    assert (f"in CLS_HOME={home}:" in text) if home else (str(fake.here) in text)
    again = fake.sbatch(*ONE, "far.sh", "digits", CLS_HOME=str(fake.world.checkout))
    assert again.wait() == "COMPLETED 0:0", fake.output(again)


def test_outside_a_job_a_script_says_so(tmp_path: Path) -> None:
    for name in SCRIPTS[:-1]:
        script = ROOT / "slurm" / f"{name}.sh"
        done = subprocess.run(["bash", script], env=environment(), capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode != 0 and "submit this script with sbatch, or run it inside salloc" in done.stderr


@pytest.mark.parametrize(
    ("options", "script", "processes", "config", "cpus"),
    [
        (["--gpus-per-node=2", "-c", "3"], "slurm/train.sh", 2, "ddp", "3"),
        (["-p", "rtx3090", "-N2", "--gpus-per-node=4", "-c", "2"], "slurm/rtx3090.sh", 8, "ddp", "2"),
        (["--exclusive"], "train.sh", 1, "cpu", "16"),
    ],
)
def test_inside_salloc_a_script_uses_what_was_allocated(
    fake: Fake, options: list[str], script: str, processes: int, config: str, cpus: str
) -> None:
    cwd = fake.world.checkout if "/" in script else fake.world.checkout / "slurm"
    done = fake.world.call("salloc", *options, "bash", script, "digits", "--out", str(fake.folder / "run"), cwd=cwd,
                             **fake.env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (notes,) = fake.notes.glob("*.jsonl")
    starts = [json.loads(line) for line in notes.read_text().splitlines()]
    assert len(starts) == max(1, processes // 4) and len({start["node"] for start in starts}) == len(starts)
    for start in starts:
        assert option(start, "--num_processes") == str(processes) and start["cpus"] == cpus
        assert option(start, "--config_file").endswith(f"/{config}.yaml")
        assert len(start["gpus"].split(",")) * len(starts) == processes


def test_control_c_inside_salloc_saves_and_prints_how_to_resume(fake: Fake) -> None:
    out = fake.folder / "run"
    salloc = ["salloc", *ONE, "bash", str(fake.script), "digits", "--out", str(out)]
    env = fake.world.environment(**fake.env | {"FAKE_RUN": "100", "FAKE_SAVE": "1"})
    terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", *salloc]
    with subprocess.Popen(terminal, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as typed:
        deadline = time.monotonic() + 60
        while not (out / "running").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        text = typed.communicate(b"\x03", timeout=60)[0]
    assert json.loads((out / "exit.json").read_text())["outcome"] == "stopped"
    line = onward(text.decode().replace("\r", ""))
    assert shlex.split(line) == ["sbatch", str(fake.script), "digits", "--out", str(out)]


def test_the_printed_command_works_where_the_job_was_submitted(fake: Fake) -> None:
    """Of a copied script, with paths relative to another directory."""
    (fake.here / "else where").mkdir()
    copy = fake.world.checkout / "slurm" / "my copy.sh"
    shutil.copy(fake.world.checkout / "slurm" / "a6000.sh", copy)
    job = fake.sbatch("--no-requeue", *ONE, "--chdir", "else where", copy, "digits", "--out", "a run", FAKE_RUN="100")
    out = fake.here / "else where" / "a run"
    fake.attempt(job, 0, out)
    fake.world.call("scancel", "--batch", "--signal=USR1", job.id)
    assert job.wait() == "FAILED 85:0"
    line = onward(fake.output(job))
    words = shlex.split(line)
    assert words == ["sbatch", "--chdir", str(fake.here / "else where"), str(copy), "digits", "--out", "a run"]
    env = fake.world.environment(**fake.env)
    typed = subprocess.run(line.replace("sbatch", "sbatch --parsable", 1), shell=True, cwd=fake.here, env=env,
                           capture_output=True, text=True)  # fmt: skip
    again = Job(fake.world, typed.stdout.strip(), fake.folder)
    assert again.wait() == "COMPLETED 0:0", fake.output(again)
    assert json.loads((out / "exit.json").read_text())["outcome"] == "done"


# --- 16: the run directory of --out ---


@pytest.mark.parametrize("home", ["/a b", "/", "", "//h/", None])
def test_a_path_with_a_tilde_is_what_python_makes_of_it(tmp_path: Path, home: str | None) -> None:
    paths = ["~/x", "~", "~/", "~root/y", "~root", "~no-such-user/x", "x~", "a/~/b", "/abs", "", "~/a b/~c", "~//x",
             "./~/x", "-n", "~ /x", "~*", "~/*", "$HOME", "a\\b"]  # fmt: skip
    env = environment(CLS_CACHE=str(tmp_path), CLS_OFFLINE="0")
    env = {name: value for name, value in env.items() if name != "HOME"} | ({} if home is None else {"HOME": home})
    loop = '. "$0/slurm/env.sh" && for path in "$@"; do expanded "$path"; done'
    bash = subprocess.run(["bash", "-euo", "pipefail", "-c", loop, str(ROOT), *paths], env=env, capture_output=True,
                          text=True, check=True)  # fmt: skip
    python = "import os, sys; [print(os.path.expanduser(path)) for path in sys.argv[1:]]"
    own = subprocess.run([sys.executable, "-c", python, *paths], env=env, capture_output=True, text=True, check=True)
    assert bash.stdout == own.stdout and own.stdout.count("\n") == len(paths)


@pytest.mark.parametrize("words", [["--out=~/a run"], ["--out", "~/a run"], ["--out", "other", "--out", "~/a run"]])
def test_a_stop_reaches_a_run_whose_out_has_a_tilde(fake: Fake, words: list[str]) -> None:
    """The stop request is a file in its directory, and its exit.json is read there."""
    out = fake.folder / "home" / "a run"
    env = {"HOME": str(fake.folder / "home"), "FAKE_RUN": "100"}
    job = fake.sbatch("--no-requeue", *ONE, fake.script, "digits", *words, "--data.path=~/photos", **env)
    fake.attempt(job, 0, out)
    fake.world.call("scancel", "--batch", "--signal=USR1", job.id)
    assert job.wait() == "FAILED 85:0", fake.output(job)
    assert str(out) in onward(fake.output(job)) and not (fake.here / "~").exists()
    assert fake.starts(job)[0]["data"] == f"{fake.folder}/home/photos"


def test_the_run_directory_the_data_and_the_device_are_found_in_the_file_of_config(fake: Fake) -> None:
    """In any form that YAML has; the command line overrules them, and the launcher is given the words as typed."""
    python = fake.folder / "venv" / "bin" / "python3"
    python.write_text(f'#!/usr/bin/env bash\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    env = {"HOME": str(fake.folder / "home"), "PYTHONPATH": ""}
    named = "recipe: mlp-head\n'out': \"~/a run\"\ndata: {path: ~/my photos}\ntrain:\n  device: cpu\n"
    (fake.here / "my file.yaml").write_text(named)
    (fake.here / "part.yaml").write_text("data: {size: 96}\n")
    (fake.here / "bad.yaml").write_text("recipe: best\noptim: {lrr: 1}\n")
    jobs = {
        "file": fake.sbatch(*ONE, fake.script, "--config", "my file.yaml", "--seed", "1", **env),
        "typed": fake.sbatch(*ONE, fake.script, "--config=my file.yaml", "--out", "here", "--data.path=x",
                             "--train.device", "cuda", **env),
        "part": fake.sbatch(*ONE, fake.script, "best", "--config", "part.yaml", **env),
        "bad": fake.sbatch(*ONE, fake.script, "--config", "bad.yaml", **env),
    }  # fmt: skip
    ends = {name: job.wait() for name, job in jobs.items()}
    assert ends == {name: "FAILED 2:0" if name == "bad" else "COMPLETED 0:0" for name in jobs}, [
        fake.output(job) for job in jobs.values()
    ]
    message = "config: bad.yaml: unknown field optim.lrr; did you mean optim.lr?"
    assert message in fake.output(jobs["bad"]) and not fake.starts(jobs["bad"])
    file, typed, part = (fake.starts(jobs[name])[0] for name in ("file", "typed", "part"))
    own = str(fake.folder / "home")
    assert file["argv"][-4:] == ["--config", "my file.yaml", "--seed", "1"] and file["data"] == f"{own}/my photos"
    assert "cpu.yaml, first node a6000-1" in fake.output(jobs["file"]) and f"-> {own}/a run" in fake.output(
        jobs["file"]
    )
    assert typed["data"] == "x" and option(typed, "--config_file").endswith("/one_gpu.yaml")
    assert "-> here" in fake.output(jobs["typed"])
    assert part["argv"][-5:] == ["best", "--config", "part.yaml", "--out", f"runs/best-{jobs['part'].id}"]


# --- 23: the time limit ---


def test_a_save_that_outlasts_the_time_limit_is_queued_again_and_the_command_is_printed(fake: Fake) -> None:
    """SLURM looks at its limits twice a minute; the end is moved, so that it need not be a minute away."""
    cases: dict[str, tuple[list[str], dict[str, str], str]] = {
        "again": ([], {}, ""),
        "forbidden": (["--no-requeue"], {}, "this job cannot be queued again"),
        "often enough": ([], {"CLS_RESTARTS": "0"}, "CLS_RESTARTS is 0"),
    }
    slow = {"FAKE_RUN": "100", "FAKE_SAVE": "100"}
    jobs = {name: fake.sbatch(*options, *ONE, fake.script, "digits", "--out", name, **slow | env)
            for name, (options, env, _) in cases.items()}  # fmt: skip
    for name, job in jobs.items():
        fake.attempt(job, 0, fake.here / name)
        assert fake.world.call("scontrol", "update", f"JobId={job.id}", "EndTime=now+2").returncode == 0
        if name != "again":  # there the limit is the first that the script learns
            fake.world.call("scancel", "--batch", "--signal=USR1", job.id)
    jobs["again"].until(lambda: jobs["again"].field("Restarts") == "1")
    jobs["again"].until(lambda: jobs["again"].field("JobState") == "PENDING")
    fake.world.call("scancel", jobs["again"].id)
    for name, job in jobs.items():
        if name != "again":
            assert job.wait().startswith("TIMEOUT") and job.field("Restarts") == "0"
            assert (fake.here / name / "stop").exists()
        text = fake.output(job)
        assert "the time limit was reached before the run had saved" in text and cases[name][2] in text
        assert shlex.split(onward(text)) == ["sbatch", str(fake.script), "digits", "--out", name]


# --- 24: tasks, lines of a sweep ---

TASKS: dict[str, tuple[list[str], str, int, int, str]] = {
    # options, script, processes, nodes, CPUs of a node's launcher
    "two tasks": (["--ntasks-per-node=2", "--gpus-per-node=2", "-c", "2"], "train", 2, 1, "4"),
    "two tasks on two nodes": (["-N2", "--ntasks-per-node=2", "--gpus-per-node=4", "-c2"], "train", 8, 2, "4"),
    "GPUs by task": (["--ntasks-per-node=2", "--gpus-per-task=1", "--gpus-per-node=2", "-c1"], "train", 2, 1, "2"),
    "GPUs by task only": (["--ntasks-per-node=2", "--gpus-per-task=2", "-c1"], "bare", 4, 1, "2"),
    "exclusive": (["--exclusive", "--gpus-per-node=1", "-c2"], "train", 4, 1, "2"),
    "gres": (["--gres=gpu:2", "-c1"], "bare", 2, 1, "1"),
    "exclusive gres": (["--exclusive", "--gres=gpu:1", "-c1"], "bare", 4, 1, "1"),
    "GPUs of the job": (["-N2", "--gpus=8", "-c1"], "bare", 8, 2, "1"),
    "no GPU": (["-c1"], "bare", 1, 1, "1"),
    "predict": (["--ntasks-per-node=2", "--gpus-per-node=2", "-c1"], "predict", 2, 1, "2"),
}


def test_one_launcher_a_node_with_every_gpu_whatever_the_tasks(fake: Fake) -> None:
    slurm = fake.world.checkout / "slurm"
    lines = fake.script.read_text().splitlines(keepends=True)
    (slurm / "bare.sh").write_text("".join(line for line in lines if "gpus-per-node=" not in line))
    jobs = {name: fake.sbatch("-p", "rtx3090", *options, slurm / f"{script}.sh", "digits")
            for name, (options, script, *_) in TASKS.items()}  # fmt: skip
    for name, job in jobs.items():
        options, _, processes, nodes, cpus = TASKS[name]
        assert job.wait() == "COMPLETED 0:0", f"{name}: {fake.output(job)}"
        starts = fake.starts(job)
        assert len(starts) == nodes == len({start["node"] for start in starts}), name
        assert {option(start, "--num_processes") for start in starts} == {str(processes)}, name
        assert {start["cpus"] for start in starts} == {cpus}, name
        assert len({option(start, "--main_process_port") for start in starts}) == 1, name
        if name != "no GPU":
            assert [len(start["gpus"].split(",")) for start in starts] == [processes // nodes] * nodes, name
        assert ("tasks on a node: one is started" in fake.output(job)) == ("--ntasks-per-node=2" in options), name


LINES = [
    "digits --seed 1", "digits --seed 1 # the first", "digits\t--seed  2   # don't \"worry", "a '#b' \"# c\" \\# d#e",
    "x ''", "x \"\" y", "'a'\"'\"'b' --model.head \"16 relu\"", r'"a \" b \n \\ c" \a \  b', "  lead --x=1  ",
    "digits --note 'über \u00a0 λ' ~/x '~' =", "a#b #c", "#only", "'#'",
]  # fmt: skip


def test_a_line_is_split_as_a_shell_does() -> None:
    """bash itself is the second opinion, for lines in which nothing is expanded."""
    text = (ROOT / "slurm" / "sweep.sh").read_text()
    found = re.search(r"^words_of\(\) \{.*?^\}$", text, re.MULTILINE | re.DOTALL)
    assert found
    show = '\nif words_of "$1"; then for word in "${words[@]}"; do printf "%s\\0" "$word"; done; else exit 9; fi'

    def ours(line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-uc", found[0] + show, "-", line]
        return subprocess.run(command, capture_output=True, text=True, env=environment(HOME="~"))

    for line in LINES:
        shell = subprocess.run(["bash", "-c", f"set -- {line}\n" 'for w in "$@"; do printf "%s\\0" "$w"; done'],
                               capture_output=True, text=True, env=environment(HOME="~"))  # fmt: skip
        assert (ours(line).stdout, ours(line).returncode) == (shell.stdout, 0), line
    for line, words in {"a $HOME `ls` $(ls) *;|&": ["a", "$HOME", "`ls`", "$(ls)", "*;|&"]}.items():
        assert ours(line).stdout.split("\0")[:-1] == words
    for line in ("a 'b", 'a "b', "a \\", 'a "b\\', "a 'b' \"c # d"):
        assert ours(line).returncode == 9, line


def test_the_lines_of_a_sweep_may_come_from_windows_and_have_comments(fake: Fake) -> None:
    lines = [
        "# all",
        "digits --seed 1 # base line",
        "",
        '  mlp-head --model.head "16 relu"   # it\'s wider',
        "digits #3",
    ]
    (fake.here / "lines.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (fake.here / "utf16.txt").write_bytes("\n".join(lines).encode("utf-16"))
    (fake.here / "open.txt").write_text("digits --x 'open\n")
    script = fake.world.checkout / "slurm" / "sweep.sh"
    job = fake.sbatch("--array=1-4", *ONE, script, "lines.txt", "--data.path", "the photos")
    bad = {
        "contains zero bytes (UTF-16": fake.sbatch("--array=1", *ONE, script, "utf16.txt"),
        "variant 1 has an unclosed quote": fake.sbatch("--array=1", *ONE, script, "open.txt"),
        "set CLS_SWEEP=FOLDER": fake.sbatch("--array=1", *ONE, script, "lines.txt", "--out", "one"),
        "none.txt is not a readable file": fake.sbatch("--array=1", *ONE, script, "none.txt"),
        "give the file with one variant per line": fake.sbatch("--array=1", *ONE, script),
    }
    for one in (job, *bad.values()):
        one.until(lambda one=one: not fake.world.squeue(one.id, "%T"))
    words = {tuple(json.loads(line)["argv"][-6:]) for file in fake.notes.glob("*.jsonl") for line in file.open()}
    folder = f"runs/sweep-{job.id}"
    assert {start[-1] for start in words} == {f"{folder}/00{number}" for number in (1, 2, 3)}
    common = ("--data.path", "the photos", "--out")
    assert ("--seed", "1", *common, f"{folder}/001") in words
    assert ("--model.head", "16 relu", *common, f"{folder}/002") in words
    assert any(start[-5:] == ("digits", *common, f"{folder}/003") for start in words)
    assert "lines.txt has 3 variants; there is no number 4" in fake.output(job)
    for part, one in bad.items():
        assert part in fake.output(one)


# --- 25: again and again ---


def test_a_job_that_is_preempted_twice_in_a_row_comes_back_and_the_job_after_it_waits(fake: Fake) -> None:
    """The second time before the run handles a signal. One script has no --signal: its processes get SIGTERM."""
    bare = fake.world.checkout / "slurm" / "no signal.sh"
    lines = fake.script.read_text().splitlines(keepends=True)
    bare.write_text("".join(line for line in lines if "--signal=B:" not in line))
    where = {"a6000-1": fake.script, "a6000-2": bare, "rtx3090-1": fake.script}
    env = {"FAKE_RUN": "12", "FAKE_IMPORT": "3"}
    jobs = {node: fake.sbatch("-p", node[:-2], "-w", node, *ONE, script, "digits", "--out", node, **env)
            for node, script in where.items()}  # fmt: skip
    after = fake.sbatch("-p", "rtx3090", "-w", "rtx3090-2", f"--dependency=afterok:{jobs['a6000-2'].id}", *ONE,
                        fake.script, "digits", "--out", "after")  # fmt: skip
    for attempt in (0, 1):
        for node, job in jobs.items():
            fake.attempt(job, attempt, None if attempt else fake.here / node)
        urgent = [fake.world.sbatch(fake.here, "-p", "urgent", "-w", node, "--exclusive", "--wrap", "true")
                  for node in where]  # fmt: skip
        for one in urgent:
            assert one.wait() == "COMPLETED 0:0"
    for node, job in jobs.items():
        assert job.wait() == "COMPLETED 0:0", f"{node}: {fake.output(job)}"
        assert int(job.field("Restarts")) >= 2 and {start["attempt"] for start in fake.starts(job)} >= {"0", "1", "2"}
        assert json.loads((fake.here / node / "exit.json").read_text())["outcome"] == "done"
    assert after.wait() == "COMPLETED 0:0"
    assert (fake.here / "after" / "exit.json").stat().st_mtime > (fake.here / "a6000-2" / "exit.json").stat().st_mtime


def test_without_restarts_a_job_ends_at_the_first_request_and_nothing_follows(fake: Fake) -> None:
    """An unfinished run is no success to the job that waits for it."""
    job = fake.sbatch(*ONE, fake.script, "digits", "--out", "run", FAKE_RUN="100", CLS_RESTARTS="0")
    after = fake.sbatch(*ONE, f"--dependency=afterok:{job.id}", fake.script, "digits", "--out", "after")
    fake.attempt(job, 0, fake.here / "run")
    fake.world.call("scancel", "--batch", "--signal=USR1", job.id)
    assert job.wait() == "FAILED 85:0" and job.field("Restarts") == "0"
    assert "CLS_RESTARTS is 0" in fake.output(job)
    assert shlex.split(onward(fake.output(job)))[1:] == [str(fake.script), "digits", "--out", "run"]
    after.until(lambda: after.field("Reason") == "DependencyNeverSatisfied")
    fake.world.call("scancel", after.id)
    assert not (fake.here / "after").exists()


@pytest.mark.parametrize(
    ("script", "name", "value"),
    [("train", "CLS_RESTARTS", "many"), ("train", "CLS_PROCESSES", "-1"), ("predict", "CLS_PROCESSES", "08")],
)
def test_a_setting_that_is_no_number_is_named(fake: Fake, script: str, name: str, value: str) -> None:
    job = fake.sbatch(*ONE, f"slurm/{script}.sh", "digits", **{name: value})
    assert job.wait() == "FAILED 2:0"
    assert f"{name} is '{value}': it must be a whole number" in fake.output(job) and not fake.starts(job)
