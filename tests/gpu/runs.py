"""Real runs on this machine's device: do they train, are the bits the same again and after a kill, what is rejected?

python -m tests.gpu.runs OUT SECONDS. Runs are processes beside each other.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cls.training.checkpoint import checkpoints
from tests.gpu.machine import SMALL, describe
from tests.gpu.photos import write_photos
from tests.gpu.processes import Processes
from tests.gpu.rows import Figures, Rows
from tests.gpu.table import MACHINE
from tests.harness.records import Result, bits
from tests.harness.runs import free_port

AT_ONCE = max(2, min(4, (os.cpu_count() or 2) // 2))
KILLED_AFTER = 5 if SMALL else 25  # steps, inside an epoch
DIGITS = ["digits", "--train.epochs", "1"]
PHOTOS = ["resnet50-mlp", "--model.backbone", "resnet18", "--model.weights", "none", "--data.size", "96",
          "--train.batch", "32", "--train.micro-batch", "8", "--train.epochs", "6", "--optim.clip", "1",
          "--optim.ema", "0.9", "--train.channels-last", "True"]  # fmt: skip
"""The memory format is given: runs beside each other might time it differently, and then have other bits."""
TINY = ["--model.backbone", "timm/test_resnet", "--data.size", "32", "--data.limit", "40"]


@dataclass(frozen=True)
class Kind:
    """One way to train."""

    data: str
    precision: str
    reduce: str

    @property
    def name(self) -> str:
        return f"{self.data} {self.precision} {self.reduce}"

    def words(self, out: Path) -> list[str]:
        """The command line of train.py, without --out."""
        words = DIGITS if self.data == "digits" else [*PHOTOS, "--data.path", str(out / "photos")]
        small = [*TINY, "--train.micro-batch", "8", "--train.batch", "32"] if SMALL else []
        chosen = ["--train.precision", self.precision, "--train.reduce", self.reduce, "--data.workers", "2"]
        return ["train.py", *words, *small, *chosen, "--track.wandb", "disabled"]


KINDS = [Kind(*each) for each in product(("JPEGs", "digits"), ("bf16", "fp32"), ("exact", "fast"))]
FEW = [Kind("JPEGs", "fp32", "exact"), Kind("digits", "bf16", "fast")]


class RealRuns:
    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.processes = out, Processes(out, seconds)

    def train(self, kind: Kind, name: str) -> Figures:
        """How it went from the first step to the last validation."""
        words = [*kind.words(self.out), "--out", str(self.out / folder(name))]
        since = time.monotonic()
        self.processes.wait(folder(name), self.processes.start(folder(name), words))
        return self.figures(name) | {"seconds": round(time.monotonic() - since)}

    def figures(self, name: str) -> Figures:
        rows = self.result(name).rows
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        accuracy = [row["val/accuracy"] for row in rows if "val/accuracy" in row]
        return {"loss": f"{losses[0]:.3f} to {losses[-1]:.3f}", "accuracy": round(accuracy[-1], 3)}

    def result(self, name: str) -> Result:
        return Result([0], "", self.out / folder(name))

    def kill_and_resume(self, kind: Kind, name: str) -> Figures:
        """Killed between two checkpoints, then the same command again."""
        words = [*kind.words(self.out)[1:], "--out", str(self.out / folder(name))]
        arguments = ["-m", "tests.gpu.killed", str(KILLED_AFTER), *words]
        code = self.processes.code(self.processes.start(folder(name), arguments))
        saved = [path.name for path in checkpoints(self.out / folder(name) / "checkpoints")]
        if code != -signal.SIGKILL or not saved:
            raise RuntimeError(f"exit status {code}, checkpoints {saved}: {self.processes.last_line(folder(name))}")
        return {"killed": f"after step {KILLED_AFTER}, resumed from {saved[-1]}"} | self.train(kind, name)

    def compare(self, first: str, second: str) -> None:
        """Of all that a run leaves; RuntimeError where a bit differs."""
        one, two = (bits(self.result(name)) for name in (first, second))
        wrong = [key for key in one if one[key] != two.get(key)]
        if wrong:
            raise RuntimeError(
                f"DIFFERENT BITS in {', '.join(wrong)}; weights differ by {self.apart(first, second):.1e}"
            )

    def apart(self, first: str, second: str) -> float:
        """The largest difference of the last checkpoints' weights."""
        paths = [
            checkpoints(self.result(name).out / "checkpoints")[-1] / "model.safetensors" for name in (first, second)
        ]
        one, two = map(load_file, paths)
        return max(float((one[key].double() - two[key].double()).abs().max()) for key in one)

    def rejected(self) -> Figures:
        """More processes than GPUs; without a GPU, processes that ask for one."""
        count, name = max(2, torch.cuda.device_count() + 1), "too-many"
        launch = ["-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/ddp.yaml"]
        launch += ["--num_processes", str(count), "--main_process_port", str(free_port()), "train.py", *DIGITS]
        code = self.processes.code(
            self.processes.start(name, [*launch, "--train.device", "cuda", "--out", str(self.out / name)])
        )
        record = self.result(name).exit
        if not code or record["outcome"] != "user_error" or "GPU" not in record["reason"]:
            raise RuntimeError(f"exit status {code}, {record}")
        return {"rejected": record["reason"]}

    def doctor(self) -> Figures:
        """Its findings by state, and what is not ok."""
        process = self.processes.start(
            "doctor", ["-m", "cls", "doctor", "--seconds", "1", "--json", "--out", str(self.out)]
        )
        self.processes.code(process)  # not 0 where it has a bad finding
        return findings(json.loads(self.processes.output("doctor").read_text()))

    def two_ranks(self) -> Figures:
        """See ranks.py."""
        started = [self.processes.start(f"rank-{rank}", ["-m", "tests.gpu.ranks", str(self.out), str(rank)])
                   for rank in range(2)]  # fmt: skip
        for rank, process in enumerate(started):
            self.processes.wait(f"rank-{rank}", process)
        found: Figures = json.loads(self.processes.output("rank-0").read_text().splitlines()[-1])
        return found


def folder(name: str) -> str:
    """The row's name without spaces."""
    return name.replace(", ", "-").replace(" ", "-")


def findings(document: list[dict[str, Any]]) -> Figures:
    counts = {state: sum(each["state"] == state for each in document) for state in ("ok", "warn", "bad")}
    return counts | {each["name"]: each["found"] for each in document if each["state"] != "ok"}


def jobs(real: RealRuns) -> dict[str, Callable[[], Figures]]:
    """All rows, what matters most first; those that compare bits stand behind the run that they compare with."""
    found = {"two ranks on this device": real.two_ranks, "more processes than GPUs": real.rejected}
    for kind in FEW if SMALL else KINDS:
        found[kind.name] = partial(real.train, kind, kind.name)
        if kind.data == "JPEGs" and kind.reduce == "exact":
            if not SMALL:
                found[f"{kind.name}, again"] = partial(real.train, kind, f"{kind.name}, again")
            found[f"{kind.name}, killed"] = partial(real.kill_and_resume, kind, f"{kind.name}, killed")
    return found | {"cls doctor": real.doctor}


def checked(real: RealRuns, name: str, future: Future[Figures]) -> Figures:
    """What the job found and, for a run that repeats another one, whether the bits are the same."""
    found = future.result()
    first, _, repeated = name.partition(", ")
    if repeated:
        real.compare(first, name)
        found |= {"same_bits": f"as {first}"}
    return found


def main(out: Path, seconds: float) -> None:
    real, rows = RealRuns(out, seconds), Rows(out)
    rows.plan([MACHINE, *jobs(real)])
    rows.answer(MACHINE, describe)
    write_photos(out / "photos", 10, 8 if SMALL else 24, (80, 60) if SMALL else (500, 375))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several runs share the cores
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {name: pool.submit(job) for name, job in jobs(real).items()}
        for name, future in futures.items():
            rows.answer(name, partial(checked, real, name, future))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
