"""What a batch script asks of SLURM, where that is accepted without a message and still not what the run needs.

What sbatch rejects (no shebang, CR LF, unknown options, values that it cannot parse) is left to ``sbatch --test-only``.
"""

import argparse
import operator
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from typing import NamedTuple

from cls.commands.gpus import plain

STARTUP_SECONDS = 180.0  # imports, data index, weights and the first batches from a shared file system; an assumption
CHECKPOINT_SECONDS = 60.0  # the last step, agreeing and saving on a busy file system; an assumption

OPTIONS = (
    "-c --cpus-per-task", "-D --chdir", "-e --error", "-G --gpus", "-N --nodes", "-n --ntasks", "-o --output",
    "-t --time", "--gpus-per-node", "--gpus-per-task", "--gres", "--mem", "--mem-per-cpu", "--mem-per-gpu",
    "--ntasks-per-node", "--open-mode", "--signal",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for names in OPTIONS:
        parser.add_argument(*names.split(), dest=names.rpartition("--")[2])
    for name in ("requeue", "no-requeue"):
        parser.add_argument(f"--{name}", dest=name, action="store_const", const="")
    return parser


class Option(NamedTuple):
    value: str
    line: int


@dataclass(frozen=True)
class Script:
    """The options that the rules look at, by long name, and all lines."""

    options: dict[str, Option]
    lines: tuple[str, ...]
    body: int  # the first line that is a command, from 1; 0 for none

    def get(self, name: str) -> str:
        return self.options[name].value if name in self.options else ""

    def line(self, name: str) -> int:
        return self.options[name].line if name in self.options else 0


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the plan needs of the script; zeros are not checked."""

    gpu: str = ""  # as SLURM names the type
    gpus: int = 1  # per node
    nodes: int = 1
    cores: int = 0  # per node
    host_gib: float = 0.0  # per node
    epoch_seconds: float = 0.0
    whole_seconds: float = 0.0


class Problem(NamedTuple):
    """One mistake: the rule it breaks, the line (0: something is missing), what was found and what to do."""

    rule: str
    line: int
    text: str


def read(text: str) -> Script:
    """The ``#SBATCH`` lines before the first command; SLURM silently ignores later ones."""
    lines = text.splitlines()
    body = next((i for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")), 0)
    options: dict[str, Option] = {}
    for i, line in enumerate(lines[: body - 1 if body else None], 1):
        if re.match(r"#SBATCH\s", line):
            try:
                words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
                found, _ = _parser().parse_known_args(words)
            except (ValueError, argparse.ArgumentError):  # an open quotation mark, a missing value: sbatch says so
                continue
            options |= {name: Option(value, i) for name, value in vars(found).items() if value is not None}
    return Script(options, tuple(lines), body)


def one_job(whole: float) -> str:
    """The --time in which a run of so many seconds ends without being queued again, in half hours: 6:30:00."""
    halves = ceil((whole + STARTUP_SECONDS + CHECKPOINT_SECONDS) / 1800)
    days, rest = divmod(halves, 48)
    return (f"{days}-" if days else "") + f"{rest // 2:0{2 if days else 1}}:{rest % 2 * 30:02}:00"


def seconds(text: str) -> float:
    """A SLURM time in seconds: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    0, UNLIMITED and INFINITE are no limit (inf). ValueError for anything else.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "0"):
        return inf
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise ValueError(
            f"{text!r} is not a SLURM time: write minutes (90), minutes:seconds, hours:minutes:seconds (12:00:00) or "
            "days-hours:minutes:seconds (1-00:00:00)"
        )
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    units = (60, 1) if days is None and len(parts) < 3 else (3600, 60, 1)
    return float(86400 * int(days or 0) + sum(map(operator.mul, units, parts)))


def gibibytes(text: str) -> float:
    """SLURM memory in GiB; a number without a unit is megabytes. 0 (the whole node), and no memory at all, are inf."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    unit = {"K": 2.0**-20, "": 2.0**-10, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}
    return (float(found[1]) * unit[found[2]] if found else 0.0) or inf


def requeues(limit: float, whole: float) -> int:
    """How often a run of ``whole`` seconds is queued again under a time limit (seconds)."""
    usable = limit - STARTUP_SECONDS - CHECKPOINT_SECONDS
    return 0 if limit == inf else max(0, ceil(whole / usable) - 1)


Found = Iterator[tuple[int, str]]


def _form(script: Script, needs: Needs) -> Found:
    for i, line in enumerate(script.lines, 1):
        if line.startswith("#SBATCH") and 0 < script.body < i:
            yield i, f"{line!r} comes after the first command (line {script.body}), where SLURM ignores it: move it up"
        elif re.match(r"\s+#SBATCH|# +SBATCH", line):
            yield i, f"{line!r} is a plain comment to SLURM: write #SBATCH at the start of the line"


def _output(script: Script, needs: Needs) -> Found:
    for name in ("output", "error"):
        folder = Path(script.get("chdir")) / Path(script.get(name)).parent
        if script.get(name) and not folder.is_dir():
            text = f"--{name} writes into {folder}, which does not exist, and the job fails without a message: run"
            yield script.line(name), f"{text}  mkdir -p {shlex.quote(str(folder))}"


def _requeue(script: Script, needs: Needs) -> Found:
    if "no-requeue" in script.options:
        line = script.line("no-requeue")
        yield line, "--no-requeue: a job that is preempted or out of time is not resumed: remove it"
    elif "requeue" not in script.options:
        yield 0, "a job that is preempted or out of time is not resumed: add #SBATCH --requeue"
    elif script.get("open-mode") not in ("append", "a"):
        line = script.line("open-mode")
        yield line, "the output of the job's earlier attempts is overwritten: add #SBATCH --open-mode=append"


def _signal(script: Script, needs: Needs) -> Found:
    line, add = script.line("signal"), "write #SBATCH --signal=B:USR1@120"
    if "signal" not in script.options:
        yield line, f"the run is not notified before its time limit: {add}"
    found = re.fullmatch(r"(?:([RB]+):)?(?:SIG)?([A-Z0-9]+)(?:@(\d+))?", script.get("signal"), re.IGNORECASE)
    if not found:
        return
    traps = [text for text in script.lines if re.match(r"\s*trap\s", text)]
    elsewhere = any(re.match(r"\s*(source|exec|\.|bash|sh)\s", text) for text in script.lines)
    to_shell = "B" in (found[1] or "").upper()
    if traps and not to_shell:
        yield line, f"--signal without B: goes to the job steps, not to the shell that traps it: {add}"
    if to_shell and not elsewhere and not any(found[2].upper() in text.upper() for text in traps):
        yield line, f"--signal goes to the shell, which has no trap for {found[2]} and is killed by it: trap it"
    if int(found[3] or 60) < CHECKPOINT_SECONDS:
        yield line, f"{found[3]} s are too short to save a checkpoint (up to {CHECKPOINT_SECONDS:.0f} s): {add}"


def _tasks(script: Script, needs: Needs) -> Found:
    tasks, each, nodes = script.get("ntasks"), script.get("ntasks-per-node"), script.get("nodes") or "1"
    remedy = "write #SBATCH --ntasks-per-node=1, accelerate starts one process per GPU"
    if each and each != "1":
        yield script.line("ntasks-per-node"), f"--ntasks-per-node={each}, but a node needs one task: {remedy}"
    if tasks and tasks != nodes:
        yield script.line("ntasks"), f"--ntasks={tasks} on {nodes} node(s), but each needs one task: {remedy}"
    if "gpus-per-task" in script.options:
        text = f"--gpus-per-task binds GPUs to tasks: write #SBATCH --gpus-per-node={needs.gpus}"
        yield script.line("gpus-per-task"), text


def _cores(script: Script, needs: Needs) -> Found:
    cores, wanted = script.get("cpus-per-task"), f"#SBATCH --cpus-per-task={needs.cores or 8}"
    if not cores:
        yield 0, f"without --cpus-per-task the job gets one core, and the GPU waits for images: add {wanted}"
    elif cores.isdigit() and int(cores) < needs.cores:
        yield script.line("cpus-per-task"), f"{cores} cores cannot feed the GPUs of a node: write {wanted}"


def _gpus(script: Script, needs: Needs) -> Found:
    typed = f"{needs.gpu}:{needs.gpus}" if needs.gpu else str(needs.gpus)
    remedy = f"write #SBATCH --gpus-per-node={typed}"
    nodes = script.get("nodes")
    if nodes and nodes != str(needs.nodes):
        line, remedy_nodes = script.line("nodes"), f"write #SBATCH --nodes={needs.nodes}"
        yield line, f"--nodes={nodes}, but the plan has {needs.nodes}: {remedy_nodes}"
    asked = [name for name in ("gpus-per-node", "gres", "gpus") if script.get(name)]
    if not asked and "gpus-per-task" not in script.options:
        yield 0, f"the script requests no GPU: {remedy}"
    for name in asked:
        value, line = script.options[name]
        words = value.removeprefix("gres:").split(":")
        words = words[1:] if name == "gres" and words[0] == "gpu" else words
        count = words.pop() if words and words[-1].isdigit() else "1"
        wanted = needs.gpus * (needs.nodes if name == "gpus" else 1)
        if int(count) != wanted:
            yield line, f"--{name}={value} is {count} GPU(s), but the plan has {wanted}: {remedy}"
        if words and needs.gpu and plain(words[0]) != plain(needs.gpu):
            yield line, f"--{name}={value} asks for {words[0]}, but the plan is for {needs.gpu}: {remedy}"


def _time(script: Script, needs: Needs) -> Found:
    line, text = script.line("time"), script.get("time")
    if not text:
        yield 0, "without --time the partition's default applies, often an hour: add #SBATCH --time=1-00:00:00"
        return
    try:
        limit = seconds(text)
    except ValueError:
        return
    least = STARTUP_SECONDS + needs.epoch_seconds + CHECKPOINT_SECONDS
    if limit <= least:
        yield line, f"--time={text} is shorter than start-up and one epoch: write --time={ceil(least / 60)} or more"
    elif (again := requeues(limit, needs.whole_seconds)) > 0:
        whole = needs.whole_seconds + STARTUP_SECONDS + CHECKPOINT_SECONDS
        text = f"--time={text} is shorter than the run ({whole / 3600:.1f} h), so it is requeued {again} time(s)"
        yield line, f"{text}: fine with --requeue, or write --time={ceil(whole / 60)}"


def _memory(script: Script, needs: Needs) -> Found:
    cores = script.get("cpus-per-task")
    for name, times in (("mem", 1), ("mem-per-cpu", int(cores) if cores.isdigit() else 1), ("mem-per-gpu", needs.gpus)):
        value = script.get(name)
        found = gibibytes(value) * times
        if found < needs.host_gib:
            unit = " (a number without a unit is megabytes)" if value.isdigit() else ""
            text = f"--{name}={value} is {found:.1f} GiB a node{unit}, but the processes need about"
            yield script.line(name), f"{text} {needs.host_gib:.0f}: write #SBATCH --mem={ceil(needs.host_gib)}G"


RULES: dict[str, Callable[[Script, Needs], Found]] = {
    "form": _form, "output folder": _output, "requeue": _requeue, "signal": _signal,
    "tasks": _tasks, "cores": _cores, "gpus": _gpus, "time": _time, "memory": _memory,
}  # fmt: skip


def check(text: str, needs: Needs) -> list[Problem]:
    """Every mistake of a script, in the order of the rules."""
    script = read(text)
    return [Problem(rule, *found) for rule, look in RULES.items() for found in look(script, needs)]
