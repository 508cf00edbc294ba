"""Which transports between processes work, how fast they are, and the settings that they need."""

import socket
from collections.abc import Callable, Mapping, Sequence

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
    findings, exports = _on_this_machine("gloo", 2, seconds, GLOO)
    if (count := torch.cuda.device_count()) > 1:
        more, needed = _on_this_machine("nccl", count, seconds, NCCL)
        findings, exports = findings + more, exports + needed
    path = cache_folder() / f"nccl-{socket.gethostname()}.sh"
    if not save:
        return findings
    if exports:
        write_whole(path, "".join(f"export {text}\n" for text in exports).encode())
    found = f"{path} now exports {' '.join(exports)}" if exports else "nothing to save: the defaults are best"
    return [*findings, Finding("ok", "transport", found)]


def _on_this_machine(
    backend: str, world_size: int, seconds: float, settings: Sequence[str]
) -> tuple[list[Finding], list[str]]:
    def attempt(text: str) -> Trial:
        return trial(backend, world_size, seconds, dict([text.split("=")]) if text else {})

    hopeless = f"no setting helps: run on one process, or fix {backend}"
    return judge(f"{backend} on {world_size} processes", tried(backend, settings, attempt), hopeless)


def tried(backend: str, settings: Sequence[str], attempt: Callable[[str], Trial]) -> dict[str, Trial]:
    """Trials by setting, '' first. For NCCL all ``settings`` are tried, for gloo only if it fails without them."""
    trials = {"": attempt("")}
    return trials | {text: attempt(text) for text in settings if backend == "nccl" or trials[""].problem}


def judge(name: str, trials: Mapping[str, Trial], hopeless: str) -> tuple[list[Finding], list[str]]:
    """The findings of trials, by their setting ('' is none), and the setting to export, if any.

    ``name`` of what was tried; ``hopeless``: the remedy where no setting works.
    """
    default, working = trials[""], {text: found.rate for text, found in trials.items() if not found.problem}
    best = max(working, key=lambda text: working[text], default="")
    needed = bool(default.problem) or working[best] > SLOWER * working[""]
    findings = []
    for setting, found in trials.items():
        label = name + (f" with {setting}" if setting else "")
        remedy = f"export {best}" if best and needed else hopeless
        text, used = found.problem or f"{found.rate / 1e9:.2f} GB/s", not setting  # one that is not used may fail
        findings.append(graded(label, text, remedy, warn=used and needed, bad=used and bool(found.problem)))
    return findings, [best] if best and needed else []
