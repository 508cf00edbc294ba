"""`cls doctor`: what this machine has, what would fail in a run, and how to fix it.

Each check returns findings; a check that raises becomes a finding and does not hide the others.
"""

import math
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cls.commands.doctor import measure, nodes
from cls.commands.doctor.findings import GIB, Finding, graded
from cls.commands.doctor.gpus import gpus
from cls.commands.doctor.trials import transports
from cls.commands.fetch import library_caches
from cls.config import Track
from cls.distributed.launch import driver
from cls.runtime import system
from cls.runtime.paths import cache_folder
from cls.tracking.wandb_run import wandb_key, wandb_mode

NETWORK_SECONDS = 3.0
NCCL_SHM_BYTES = 32 << 20  # of each process: channels of 9.6 MB to its neighbours; an assumption, not measured by us
LITTLE_SHM_BYTES = 1 << 20


def doctor(out: str, data: str, save: bool, seconds: float) -> list[dict[str, Any]] | None:
    """Check this machine; print one line per finding as soon as it is known, and return all.

    ``out``: directory whose disk is measured; ``data``: images whose reading is measured, '' for none; ``seconds``: how
    long each transport is tried; ``save``: write the variables that the transports need to ``nccl-<host>.sh``.
    Where srun started it on several nodes, the transports between them are tried too, and the first task returns the
    findings of all nodes, each with its node's name, the others None.
    """
    if int(os.environ.get("SLURM_LOCALID", "0")):
        print("cls doctor: the first task of this node examines it", file=sys.stderr)
        return None
    step = nodes.slurm_step(os.environ)
    meeting = nodes.Meeting(step, seconds) if step else None
    findings = _examined(Path(out), Path(data).expanduser() if data else None, save, seconds, step.name if step else "")
    found = meeting.conclude(findings, _show) if meeting else findings
    return None if found is None else [asdict(finding) for finding in found]


def _examined(out: Path, data: Path | None, save: bool, seconds: float, node: str) -> list[Finding]:
    """The findings of this machine, with its name if it is one of several."""
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("software", software), ("GPU", gpus), ("cores", cores), ("memory", memory), ("/dev/shm", shared_memory),
        ("caches", caches), ("W&B", wandb_login), ("network", network), ("SLURM", partial(slurm, os.environ)),
        ("disk", partial(run_disk, out)),
    ]  # fmt: skip
    if data:
        checks.append(("data", partial(user_data, data)))
    checks.append(("transport", partial(transports, seconds, save)))
    findings = []
    for name, check in checks:
        try:
            new = check()
        except Exception as error:  # an unusual machine must not hide the other findings
            new = [Finding("warn", name, f"could not be examined: {type(error).__name__}: {error}")]
        for finding in new:
            findings.append(replace(finding, name=f"{node}: {finding.name}" if node else finding.name))
            _show(findings[-1])
    return findings


def _show(finding: Finding) -> None:
    print(finding, file=sys.stderr, flush=True)


def not_ready(findings: list[dict[str, Any]]) -> ValueError | None:
    """An error that lists the bad findings, if any."""
    bad = [f"{item['name']}: {item['found']} -> {item['remedy']}" for item in findings if item["state"] == "bad"]
    return ValueError("this machine is not ready:\n  " + "\n  ".join(bad)) if bad else None


def software() -> list[Finding]:
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "not in use"  # type: ignore[no-untyped-call]  # torch
    found = f"Python {platform.python_version()}, torch {torch.__version__} {cuda}, driver {driver()}, NCCL {nccl}"
    return [Finding("ok", "software", found)]


def cores() -> list[Finding]:
    return [core_finding(os.cpu_count() or 1, len(os.sched_getaffinity(0)), system.cgroup_limits().cores)]


def core_finding(machine: int, allowed: int, quota: float) -> Finding:
    """``machine``: all cores; ``allowed``: those this process may run on; ``quota``: limit of CPU time, in cores."""
    found = f"{allowed} of the machine's {machine}" + (f", CPU time of {quota:g}" if quota < allowed else "")
    remedy = "ask for more, e.g. srun --cpus-per-task 8: images are decoded on them"
    if quota < allowed:
        remedy = f"loaders are counted by whole cores: use --data.workers {max(1, int(quota))}, or ask for more CPU"
    return graded("cores", found, remedy, warn=quota < allowed or allowed == 1 < machine)


def memory() -> list[Finding]:
    total, available = system.memory_bytes()
    limit = system.cgroup_limits().memory
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    found += f", this job may use {limit / GIB:.1f} GiB" if limit < math.inf else ""
    remedy = "ask for more, e.g. sbatch --mem 16G: torch alone takes 1 to 3 GiB"
    return [graded("memory", found, remedy, warn=min(limit, available) < 4 * GIB)]


def shared_memory() -> list[Finding]:
    sizes, gpus = os.statvfs("/dev/shm"), torch.cuda.device_count()
    return [shm_finding(sizes.f_blocks * sizes.f_frsize, sizes.f_bavail * sizes.f_frsize, gpus)]


def shm_finding(total: int, free: int, gpus: int) -> Finding:
    """Whether /dev/shm (bytes) has space for NCCL; our loader uses none of it."""
    need = gpus * NCCL_SHM_BYTES if gpus > 1 else LITTLE_SHM_BYTES
    found = f"{free / 1e6:.0f} of {total / 1e6:.0f} MB free; {max(1, gpus)} processes want {need / 1e6:.0f} MB"
    remedy = "a larger one (docker run --shm-size 1g), or, slower between GPUs, export NCCL_SHM_DISABLE=1"
    return graded("/dev/shm", found, remedy, bad=free < need)


def caches() -> list[Finding]:
    findings = []
    for variable, path in {"CLS_CACHE": cache_folder(), **library_caches()}.items():
        above = measure.existing(path)
        free, writable = shutil.disk_usage(above).free, os.access(above, os.W_OK)
        found = f"{path}, {free / GIB:.1f} GiB free" if writable else f"{path}: {above} cannot be written"
        remedy = f"export {variable}=FOLDER on a large, writable disk"
        findings.append(graded(variable, found, remedy, warn=free < 5 * GIB, bad=not writable))
    return findings + [quota_finding(quota) for quota in measure.quotas()]


def quota_finding(quota: measure.Quota) -> Finding:
    left = quota.limit - quota.used
    found = f"{quota.used / GIB:.1f} of {quota.limit / GIB:.1f} GiB used"
    remedy = "keep caches and runs elsewhere: export HF_HOME=… TORCH_HOME=… CLS_CACHE=…, and --out on another disk"
    return graded(f"quota {quota.name}", found, remedy, warn=left <= 10 * GIB, bad=left <= 0)


def wandb_login() -> list[Finding]:
    try:
        mode, known = wandb_mode(Track()), wandb_key()
    except ValueError as error:
        return [Finding("bad", "W&B", str(error), "correct it, or export WANDB_MODE=offline")]
    found = f"{mode}, {'an' if known else 'no'} API key is known"
    if mode == "online" and not known:
        return [Finding("bad", "W&B", found, "run `wandb login`, or export WANDB_MODE=offline")]
    remedy = "" if known or mode == "disabled" else "fine; `wandb login` sends runs as they train"
    return [Finding("ok", "W&B", found, remedy)]


def network() -> list[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return [Finding("ok", "network", "not tried: HF_HUB_OFFLINE is set")]
    addresses = [
        os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
        os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"),
        "https://download.pytorch.org",
    ]
    addresses = [re.sub(r"//[^/]*@", "//", address) for address in addresses]  # any answer will do; without a password
    answers = measure.reach(addresses, NETWORK_SECONDS)
    remedy = "run `cls fetch RECIPE …` where there is internet, and train with --offline"
    findings = []
    for address in addresses:
        why, own = answers[address], "runs are logged offline: `wandb sync` later" if "wandb" in address else remedy
        found = f"{address} cannot be reached ({why})" if why else f"{address} answers"
        findings.append(graded("network", found, own, warn=bool(why)))
    return findings


def slurm(env: Mapping[str, str]) -> list[Finding]:
    if "SLURM_JOB_ID" not in env:
        return [Finding("ok", "SLURM", "not inside a job" + ("" if shutil.which("sbatch") else ", and no sbatch here"))]
    names = {"SLURM_JOB_NUM_NODES": "nodes", "SLURM_CPUS_PER_TASK": "cores a task", "SLURM_NTASKS": "tasks",
             "SLURM_GPUS_ON_NODE": "GPUs here", "SLURM_MEM_PER_NODE": "MB of memory a node"}  # fmt: skip
    parts = [f"job {env['SLURM_JOB_ID']}", *(f"{env[key]} {text}" for key, text in names.items() if key in env)]
    found = ", ".join(parts)
    if not env.get("SLURM_JOB_END_TIME", "").isdigit():
        remedy = "sbatch --signal=B:USR1@120 asks a run to save in time"
        return [Finding("warn", "SLURM", f"{found}; its end is not known (no SLURM_JOB_END_TIME)", remedy)]
    minutes = (int(env["SLURM_JOB_END_TIME"]) - time.time()) / 60
    return [graded("SLURM", f"{found}; ends in {minutes:.0f} minutes", "ask for a longer --time", warn=minutes < 10)]


def run_disk(out: Path) -> list[Finding]:
    folder = measure.existing(out)
    try:
        found = measure.disk(folder)
    except OSError as error:
        return [Finding("bad", "disk", f"{folder}: {error.strerror}", "use --out on a disk with space to write to")]
    rates = f"{folder}: writes {found.write / 1e6:.0f} MB/s, reads {found.read / 1e6:.0f} MB/s"
    slow = f"a checkpoint of 1 GB takes {1e9 / found.write:.0f} s: use --out on a faster disk"
    findings = [graded("disk", rates, slow, warn=found.write < 50e6)]
    if abs(found.skew) > 2:
        skew = f"{folder}: its file server's clock is {found.skew:+.0f} s off this machine's"
        findings.append(Finding("warn", "clock", skew, "ask the administrator for NTP: run locks compare file times"))
    return findings


def user_data(path: Path) -> list[Finding]:
    found = measure.reading(path) if path.exists() else None
    if not found or not found.bytes:
        problem = "has no images" if found else "does not exist"
        return [Finding("bad", "data", f"{path} {problem}", "name a folder of images or a file")]
    per_second = f"{found.files / found.seconds:.0f} files/s, " if path.is_dir() else ""
    text = f"{path}: {per_second}{found.bytes / found.seconds / 1e6:.0f} MB/s by one process, first byte after "
    text += f"{1000 * found.latency:.1f} ms"
    remedy = "a slow file system for small files: CLS_STAGE=1 before sbatch copies it to each node's disk, or do so: "
    return [graded("data", text, f"{remedy}cp -r {shlex.quote(str(path))} $TMPDIR", warn=found.latency > 5e-3)]
