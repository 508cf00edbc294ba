"""A real SLURM for the tests: daemons, partitions and preemption on this machine, and a checkout to submit from."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import ROOT, SHARED, environment
from tests.harness.records import Result

SANDBOX = SHARED / "slurm-sandbox"
PATIENCE_SECONDS = 150


@dataclass
class Slurm:
    """Clients of one cluster: partitions a6000 (2 nodes, 2 GPUs, 15 s of notice), rtx3090 (2 x 4, none), urgent."""

    conf: str
    checkout: Path  # with a space in its name
    caches: Path

    def environment(self, **extra: str) -> dict[str, str]:
        own = {"SLURM_CONF": self.conf, "CLS_CACHE": str(self.caches), "CLS_OFFLINE": "1", "HF_HUB_OFFLINE": ""}
        return environment() | own | extra

    def call(self, *command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=cwd, env=self.environment(**env), capture_output=True, text=True, timeout=60)

    def sbatch(self, cwd: Path, *words: str, **env: str) -> "Job":
        """``words``: options, script and arguments; the script below slurm/ is taken from the checkout."""
        line = [str(self.checkout / word) if word.startswith("slurm/") else word for word in words]
        done = self.call("sbatch", "--parsable", *line, cwd=cwd, **env)
        assert done.returncode == 0, done.stderr
        return Job(self, done.stdout.strip(), cwd)

    def squeue(self, job: str, field: str) -> str:
        return self.call("squeue", "-h", "-j", job, "-o", field).stdout.strip()


@dataclass
class Job:
    slurm: Slurm
    id: str
    cwd: Path

    def field(self, name: str) -> str:
        text = self.slurm.call("scontrol", "show", "job", "-o", self.id).stdout
        return next(iter(re.findall(rf"\b{name}=(\S*)", text)), "")

    def output(self) -> str:
        return "".join(path.read_text() for path in sorted(self.cwd.glob(f"*-{self.id}*.out")))

    def until(self, what: Callable[[], object]) -> None:
        """Wait for something to be so while the job is there."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not what():
            there = self.slurm.squeue(self.id, "%T")
            assert (there and time.monotonic() < deadline) or what(), f"{there}\n{self.output()}"
            time.sleep(0.1)

    def wait(self) -> str:
        """Wait until it has left the queue for good; gives its state and exit code, e.g. 'COMPLETED 0:0'."""
        self.until(lambda: not self.slurm.squeue(self.id, "%T"))
        return f"{self.field('JobState')} {self.field('ExitCode')}"

    def steps(self, out: Path, count: int) -> None:
        """Wait until a run has done so many steps."""
        rows = out / "metrics.jsonl"
        self.until(lambda: rows.exists() and rows.read_text().count("train/loss") >= count)

    def result(self, out: str) -> Result:
        return Result([0], self.output(), self.cwd / out)


@contextmanager
def started() -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="cls-slurm-", dir="/tmp") as place:
        folder = Path(place)
        port = 26817 + 5 * (os.getpid() % 500)
        env = os.environ | {"SLURM_SANDBOX_PORT": str(port)}
        up = subprocess.run([SANDBOX / "up.sh", folder / "s"], env=env, capture_output=True, text=True, timeout=60)
        try:
            assert up.returncode == 0, up.stdout + up.stderr
            found = re.search(r"SLURM_CONF=(\S+)", (folder / "s" / "env.sh").read_text())
            assert found
            yield Slurm(found[1], checkout(folder / "a checkout"), folder / "caches")
        finally:
            subprocess.run([SANDBOX / "down.sh", folder / "s"], capture_output=True, timeout=60, check=False)


def checkout(folder: Path) -> Path:
    """This checkout under another name, with its virtual environment where the scripts look for it."""
    folder.mkdir()
    for name in ("train.py", "cls", "accelerate_configs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def reason() -> str:
    """Why there can be no SLURM here, or ''."""
    if not SANDBOX.is_dir():
        return "needs ../shared/slurm-sandbox, which starts the daemons"
    missing = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not _found(name)]
    return f"needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge" if missing else ""


def _found(name: str) -> bool:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None
