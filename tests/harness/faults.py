"""Faults at a given moment of a run, and other surroundings for it; called in a forked process before it trains.

A fault is "what@rank:moment:count", several are joined by ";". Moments are the names passed to ``reach``; the count is
of this rank's own moments, from 1. SIGKILL hits all processes of the run, any other signal the one rank; "raise" raises
torch.OutOfMemoryError; "$NAME" runs the shell command in the environment variable NAME; "limit=300" lets the process
have 300 MB of addresses more than it has then; "scramble" re-seeds every generator. The moments that were reached are
noted in OUT.faults.
"""

import errno
import importlib
import json
import os
import random
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torchvision.models.resnet import ResNet

import cls.evaluation.plots
import train
from cls.data.dataset import EvalDataset
from cls.data.loader import Loader
from cls.distributed import micro_batches
from cls.training import checkpoint, checkpoint_writer, train_loader
from cls.training.state import State


def plant(faults: str, rank: int, argv: list[str]) -> None:
    if not faults:
        return
    notes = Path(f"{argv[argv.index('--out') + 1]}.faults")
    for fault in reversed(faults.split(";")):  # of two at one moment the first happens first
        _plant(fault, rank, notes)


def _plant(fault: str, rank: int, notes: Path) -> None:
    what, _, rest = fault.partition("@")
    where, moment, number = rest.split(":")
    counts = Counter[str]()

    def reach(name: str) -> None:
        counts[name] += 1
        if int(where) == rank and name == moment and counts[name] == int(number):
            with notes.open("a") as file:
                file.write(f"{name}\n")
            happen(what)

    before(train, "build_state", reach, "build")
    before(train, "probe", reach, "probe")
    before(train, "loss_per_image", reach, "forward")  # inside the block of a micro-batch
    before(train, "write_results", reach, "results")
    before(train, "forward_backward", reach, "step")  # count k: k - 1 steps of this attempt are done
    before(micro_batches.MicroBatches, "accumulate", reach, "micro")
    before(State, "update", reach, "update")
    before(train_loader.TrainLoader, "next", reach, "feed")
    inside_evaluation(reach, "evaluation")
    before(checkpoint, "write", reach, "before a save")
    before(checkpoint, "_save", reach, "between files")
    before(checkpoint, "sync", reach, "before fsync")
    before(Path, "rename", reach, "before rename")
    after(Path, "rename", reach, "after rename")
    before(checkpoint_writer.CheckpointWriter, "_write_best", reach, "before best")
    after(checkpoint_writer.CheckpointWriter, "_write_best", reach, "after best")
    after(checkpoint, "prune", reach, "after pruning")


def happen(what: str) -> None:
    if what == "raise":
        raise torch.OutOfMemoryError("CUDA out of memory, says the test")
    if what == "scramble":  # no run may depend on a generator that others may use
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.rand(7)
    elif what.startswith("$"):
        subprocess.run(os.environ[what[1:]], shell=True, check=True)
    elif what.startswith("limit="):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + int(what.removeprefix("limit=")) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    elif what == "SIGKILL":
        os.killpg(0, signal.SIGKILL)
    else:
        os.kill(os.getpid(), signal.Signals[what])


def change_surroundings(rank: int) -> None:
    """Other constants of modules, a file system whose names come late, as on NFS; by environment variables.

    HARNESS_SET: {"cls.runtime.signals.ECHO_SECONDS": 0.0}. HARNESS_SLOW: seconds before each rename. HARNESS_LATE:
    seconds from the first look until a rank other than 0 sees the name of a checkpoint or of the best weights.
    HARNESS_NO_PROBE: the start does not try a micro-batch. HARNESS_NO_PLOTS: the end of a run draws none.
    HARNESS_NARROW: see ``narrow``.
    """
    for name, value in json.loads(os.environ.get("HARNESS_SET", "{}")).items():
        owner, _, attribute = name.rpartition(".")
        module = importlib.import_module(owner)
        assert hasattr(module, attribute), name
        setattr(module, attribute, value)
    if "HARNESS_NO_PROBE" in os.environ:
        train.probe = lambda micro, *_: micro
    if "HARNESS_NO_PLOTS" in os.environ:
        cls.evaluation.plots.write_plots = lambda *_: {}
    if "HARNESS_NARROW" in os.environ:
        narrow(setattr)
    if slow := float(os.environ.get("HARNESS_SLOW", 0)):
        for name in ("rename", "replace"):
            before(os, name, lambda _: time.sleep(slow), "")
    if rank and (late := float(os.environ.get("HARNESS_LATE", 0))):
        hide_names(late)


def hide_names(seconds: float) -> None:
    exists, opened = Path.exists, Path.open
    asked: dict[str, float] = {}

    def hidden(path: Path) -> bool:
        shared = path.name == "manifest.json" or path.parent.name == "best"
        return shared and time.monotonic() < asked.setdefault(str(path), time.monotonic()) + seconds

    def late_open(path: Path, *args: Any, **kwargs: Any) -> Any:
        if hidden(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return opened(path, *args, **kwargs)

    Path.exists = lambda path: not hidden(path) and exists(path)  # type: ignore[method-assign]  # for this process
    Path.open = late_open  # type: ignore[method-assign,assignment]  # as above


def narrow(put: Callable[[Any, str, Any], None]) -> None:
    """ResNets of torchvision and timm at a quarter of their width, with all their layers."""
    init, make_layer, create = ResNet.__init__, ResNet._make_layer, timm.create_model

    def narrow_init(self: ResNet, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.fc = nn.Linear(self.fc.in_features // 4, self.fc.out_features)

    def narrow_layer(self: ResNet, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        return make_layer(self, block, planes // 4, *args, **kwargs)

    put(ResNet, "__init__", narrow_init)
    put(ResNet, "_make_layer", narrow_layer)
    put(timm, "create_model", lambda name, **more: create(name, channels=(16, 32, 64, 128), **more))


def before(owner: Any, name: str, reach: Callable[[str], None], moment: str) -> None:
    real = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        reach(moment)
        return real(*args, **kwargs)

    setattr(owner, name, patched)


def after(owner: Any, name: str, reach: Callable[[str], None], moment: str) -> None:
    real = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        reach(moment)
        return result

    setattr(owner, name, patched)


def inside_evaluation(reach: Callable[[str], None], moment: str) -> None:
    """At the first batch of an evaluation."""
    real = Loader.batches

    def batches(self: Loader, source: Any, indices: Any) -> Iterator[Any]:
        if isinstance(source, EvalDataset):
            reach(moment)
        return real(self, source, indices)

    Loader.batches = batches  # type: ignore[method-assign]  # for this process
