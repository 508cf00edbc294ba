"""Which transports between processes work, how fast they are, and the settings that they need."""

import socket
from collections.abc import Mapping

import torch

from cls.commands.doctor.findings import Finding, graded
from cls.commands.doctor.transport import Trial, trial
from cls.runtime.files import write_whole
from cls.runtime.paths import cache_folder

SLOWER = 2.0  # a transport slower than another one by this factor is not used
NCCL = ("NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1", "NCCL_IB_DISABLE=1")  # known workarounds for an NCCL that hangs
GLOO = ("GLOO_SOCKET_IFNAME=lo",)  # for a host name that resolves to no interface of this machine


def transports(seconds: float, save: bool) -> list[Finding]:
    """All-reduce with two processes on the CPU, and with all GPUs of the machine if there are two or more."""
    findings, exports = _tried("gloo", 2, seconds, GLOO)
    if (count := torch.cuda.device_count()) > 1:
        more, needed = _tried("nccl", count, seconds, NCCL)
        findings, exports = findings + more, exports + needed
    path = cache_folder() / f"nccl-{socket.gethostname()}.sh"
    if not save:
        return findings
    if exports:
        write_whole(path, "".join(f"export {text}\n" for text in exports).encode())
    found = f"{path} now exports {' '.join(exports)}" if exports else "nothing to save: the defaults are best"
    return [*findings, Finding("ok", "transport", found)]


def _tried(backend: str, world_size: int, seconds: float, settings: tuple[str, ...]) -> tuple[list[Finding], list[str]]:
    """For NCCL all ``settings`` are tried, for gloo only if it fails without them."""
    trials = {"": trial(backend, world_size, seconds, {})}
    for text in settings if backend == "nccl" or trials[""].problem else ():
        name, value = text.split("=")
        trials[text] = trial(backend, world_size, seconds, {name: value})
    return judge(backend, trials)


def judge(backend: str, trials: Mapping[str, Trial]) -> tuple[list[Finding], list[str]]:
    """The findings of trials, by their setting ('' is none), and the setting to export, if any."""
    default, working = trials[""], {name: found.rate for name, found in trials.items() if not found.problem}
    best = max(working, key=lambda name: working[name], default="")
    needed = bool(default.problem) or working[best] > SLOWER * working[""]
    findings = []
    for name, found in trials.items():
        label = f"{backend} on {found.world_size} processes" + (f" with {name}" if name else "")
        remedy = f"export {best}" if best and needed else f"no setting helps: run on one process, or fix {backend}"
        text, used = found.problem or f"{found.rate / 1e9:.2f} GB/s", not name  # a setting that is not used may fail
        findings.append(graded(label, text, remedy, warn=used and needed, bad=used and bool(found.problem)))
    return findings, [best] if best and needed else []
