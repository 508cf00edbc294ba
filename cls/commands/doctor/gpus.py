"""The GPUs of this machine, examined by a process of its own (``python -m cls.commands.doctor.gpus``).

Asking a GPU for its memory opens a context, which lasts as long as the process. On a card in exclusive mode that would
make each later trial of the transports fail, and a driver that hangs can only be left from outside.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import torch

from cls.commands.doctor.findings import GIB, Finding
from cls.distributed.launch import TAKEN, choose_device, first_allocation, is_taken, taken, unusable

SECONDS = 120.0  # importing torch from a cold network file system, and a context on each GPU


def gpus(seconds: float = SECONDS) -> list[Finding]:
    """The findings of a subprocess, which is killed after ``seconds``."""
    command = [sys.executable, "-m", "cls.commands.doctor.gpus"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: a process that hangs in the driver does not end
        return [Finding("bad", "GPU", f"no answer within {seconds:.0f} s", "the driver hangs: restart the machine")]
    if process.returncode:
        last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
        problem = f"the process that examines them ended with status {process.returncode}: {last[:200]}"
        return [Finding("bad", "GPU", problem, "see `nvidia-smi` and the driver's messages in `dmesg`")]
    return [Finding(**item) for item in json.loads(output.splitlines()[-1])]


def examine() -> list[Finding]:
    """One finding for each GPU. This process has a context on each of them afterwards."""
    if not torch.cuda.is_available():
        try:
            choose_device("auto")
        except ValueError as error:
            return [Finding("bad", "GPU", str(error), "install that torch, or ask for no GPU")]
        return [Finding("ok", "GPU", "no GPU: CPU runs only")]
    return [_examined(index) for index in range(torch.cuda.device_count())]


def _examined(index: int) -> Finding:
    problem, name = first_allocation(index), f"GPU {index}"
    if is_taken(problem):
        return Finding("bad", name, taken(problem), TAKEN)
    if problem:
        return Finding("bad", name, unusable("", problem), "install that torch, or ask for no GPU")
    free, total = torch.cuda.mem_get_info(index)
    return gpu(index, torch.cuda.get_device_name(index), free, total, torch.cuda.memory_reserved(index))


def gpu(index: int, name: str, free: int, total: int, own: int) -> Finding:
    """One GPU by its numbers of bytes; contexts of idle programs take less than 1.5 GiB."""
    used = total - free - own
    found = f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if used < 1.5 * GIB:
        return Finding("ok", f"GPU {index}", found)
    remedy = "see `nvidia-smi`; use another one (CUDA_VISIBLE_DEVICES=…) or wait: a run may not fit"
    return Finding("warn", f"GPU {index}", f"{found}; {used / GIB:.1f} GiB are used by {_users()}", remedy)


def _users() -> str:
    """The processes that nvidia-smi sees on the GPUs; in most containers it sees none."""
    if not shutil.which("nvidia-smi"):
        return "others"
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout.strip().splitlines()
    return f"processes {'; '.join(said[:8])}" if said else "others"


if __name__ == "__main__":
    print(json.dumps([asdict(finding) for finding in examine()]))
