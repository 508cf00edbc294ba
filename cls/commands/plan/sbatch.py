"""What a batch script asks of SLURM, and where that is a known mistake or not what the plan needs."""

import difflib
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

SHORT = {
    "A": "account", "a": "array", "B": "extra-node-info", "b": "begin", "C": "constraint", "c": "cpus-per-task",
    "D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "i": "input",
    "J": "job-name", "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes",
    "n": "ntasks", "O": "overcommit", "o": "output", "p": "partition", "Q": "quiet", "q": "qos", "S": "core-spec",
    "s": "oversubscribe", "t": "time", "v": "verbose", "W": "wait", "w": "nodelist", "x": "exclude",
}  # fmt: skip
FLAGS = {
    "contiguous", "disable-stdout-job-info", "hold", "ignore-pbs", "no-kill", "no-requeue", "overcommit",
    "oversubscribe", "parsable", "quiet", "reboot", "requeue", "spread-job", "test-only", "use-min-nodes",
    "verbose", "wait",
}  # fmt: skip
LONG = {
    *SHORT.values(), *FLAGS, "acctg-freq", "batch", "bb", "bbf", "cluster-constraint", "comment", "container",
    "container-id", "cores-per-socket", "cpu-freq", "cpus-per-gpu", "deadline", "delay-boot", "exclusive",
    "export", "export-file", "extra", "get-user-env", "gid", "gpu-bind", "gpu-freq", "gpus-per-node",
    "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "kill-on-invalid-dep", "mail-type",
    "mail-user", "mcs-label", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nice",
    "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "open-mode", "power", "prefer",
    "priority", "profile", "propagate", "reservation", "resv-ports", "segment", "signal", "sockets-per-node",
    "switches", "thread-spec", "threads-per-core", "time-min", "tmp", "tres-bind", "tres-per-task", "uid",
    "wait-all-nodes", "wckey", "wrap",
}  # fmt: skip


class Option(NamedTuple):
    value: str
    line: int


@dataclass(frozen=True)
class Script:
    """The options that SLURM reads from a script, by long name, and the rest of its lines."""

    options: dict[str, Option]
    lines: tuple[str, ...]
    body: int  # the first line that is a command, from 1; 0 for none
    crlf: bool

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
    """The ``#SBATCH`` lines before the first command; SLURM ignores later ones without a word."""
    lines = text.split("\n")
    body = next((i for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")), 0)
    options: dict[str, Option] = {}
    for i, line in enumerate(lines[: body - 1 if body else None], 1):
        if re.match(r"#SBATCH\s", line):
            for name, value in _options(line.removeprefix("#SBATCH").strip()):
                options[name] = Option(value, i)
    return Script(options, tuple(line.rstrip("\r") for line in lines), body, "\r" in text)


def _options(text: str) -> Iterator[tuple[str, str]]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError:  # an open quotation
        words = [f"? {text}"]
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        elif word.startswith("-"):
            name, equals, value = SHORT.get(word[1:2], word), "", word[2:].removeprefix("=")
        else:
            name, equals, value = f"? {word.removeprefix('? ')}", "=", ""
        follows = bool(words) and not words[0].startswith("-")
        if not equals and not value and name not in FLAGS and follows:
            value = words.pop(0)
        yield name, value


def seconds(text: str) -> float:
    """A SLURM time in seconds: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    0, UNLIMITED and INFINITE are no limit (inf). ValueError for anything else.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "0"):
        return inf
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise ValueError(
            f"{text!r} is no SLURM time: write minutes (90), minutes:seconds, hours:minutes:seconds (12:00:00) or "
            "days-hours:minutes:seconds (1-00:00:00)"
        )
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is not None:
        hours, minutes, secs = [*parts, 0, 0][:3]
        return float(int(days) * 86400 + hours * 3600 + minutes * 60 + secs)
    if len(parts) == 3:
        return float(parts[0] * 3600 + parts[1] * 60 + parts[2])
    return float(parts[0] * 60 + (parts[1] if len(parts) == 2 else 0))


def gibibytes(text: str) -> float:
    """SLURM memory in GiB; a number without a unit is megabytes, 0 is the whole node (inf). ValueError otherwise."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.upper())
    if not found:
        raise ValueError(f"{text!r} is no SLURM memory: write 64G, or 0 for all of the node")
    return float(found[1]) * {"K": 2.0**-20, "": 2.0**-10, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}[found[2]] or inf


def requeues(limit: float, whole: float) -> int:
    """How often a run of ``whole`` seconds is queued again under a time limit (seconds)."""
    usable = limit - STARTUP_SECONDS - CHECKPOINT_SECONDS
    return 0 if limit == inf else max(0, ceil(whole / usable) - 1)


Found = Iterator[tuple[int, str]]


def _form(script: Script, needs: Needs) -> Found:
    if script.crlf:
        yield 1, "lines end in CR LF (Windows), which SLURM refuses: run  sed -i 's/\\r$//' FILE"
    if not script.lines[0].startswith("#!"):
        yield 1, "the first line is no shebang, and sbatch refuses the script: begin with #!/bin/bash"
    for i, line in enumerate(script.lines, 1):
        if line.startswith("#SBATCH") and 0 < script.body < i:
            yield i, f"{line!r} stands after the first command (line {script.body}), where SLURM ignores it: move it up"
        elif re.match(r"\s+#SBATCH|# +SBATCH", line):
            yield i, f"{line!r} is a plain comment to SLURM: write #SBATCH at the start of the line"


def _names(script: Script, needs: Needs) -> Found:
    for name, (_, line) in script.options.items():
        if name.startswith("? "):
            yield line, f"{name[2:]!r} is not understood: options begin with - or --, quotation marks come in pairs"
        elif name not in LONG:
            near = difflib.get_close_matches(name, sorted(LONG), 1)
            yield line, f"sbatch has no option --{name}" + (f": did you mean --{near[0]}?" if near else ": remove it")


def _output(script: Script, needs: Needs) -> Found:
    for name in ("output", "error"):
        folder = Path(script.get("chdir")) / Path(script.get(name)).parent
        if script.get(name) and not folder.is_dir():
            text = f"--{name} writes into {folder}, which does not exist: the job would fail without a word; run  mkdir"
            yield script.line(name), f"{text} -p {shlex.quote(str(folder))}"


def _requeue(script: Script, needs: Needs) -> Found:
    if "no-requeue" in script.options:
        yield (
            script.line("no-requeue"),
            "--no-requeue: a job that is preempted or out of time does not go on: remove it",
        )
    elif "requeue" not in script.options:
        yield 0, "a job that is preempted or out of time does not go on: add #SBATCH --requeue"
    elif script.get("open-mode") not in ("append", "a"):
        line = script.line("open-mode")
        yield line, "the output of the job's earlier attempts is overwritten: add #SBATCH --open-mode=append"


def _signal(script: Script, needs: Needs) -> Found:
    line, add = script.line("signal"), "write #SBATCH --signal=B:USR1@120"
    if "signal" not in script.options:
        yield line, f"nothing tells the run that its time is nearly over: {add}"
        return
    found = re.fullmatch(r"(?:([RB]+):)?(?:SIG)?([A-Z0-9]+)(?:@(\d+))?", script.get("signal"), re.IGNORECASE)
    if not found:
        yield line, f"--signal={script.get('signal')} is not understood: {add}"
        return
    traps = [text for text in script.lines if re.match(r"\s*trap\s", text)]
    elsewhere = any(re.match(r"\s*(source|exec|\.|bash|sh)\s", text) for text in script.lines)
    to_shell = "B" in (found[1] or "").upper()
    if traps and not to_shell:
        yield line, f"--signal without B: goes to the job steps, not to the shell that traps it: {add}"
    if to_shell and not elsewhere and not any(found[2].upper() in text.upper() for text in traps):
        yield line, f"--signal goes to the shell, which has no trap for {found[2]} and would die of it: trap it"
    if int(found[3] or 60) < CHECKPOINT_SECONDS:
        yield line, f"{found[3]} s are too short to save a checkpoint (up to {CHECKPOINT_SECONDS:.0f} s): {add}"


def _tasks(script: Script, needs: Needs) -> Found:
    tasks, each, nodes = script.get("ntasks"), script.get("ntasks-per-node"), script.get("nodes") or "1"
    remedy = "write #SBATCH --ntasks-per-node=1, accelerate starts a process for each GPU by itself"
    if each and each != "1":
        yield script.line("ntasks-per-node"), f"--ntasks-per-node={each}, but a node needs one task: {remedy}"
    if tasks and tasks != nodes:
        yield script.line("ntasks"), f"--ntasks={tasks} on {nodes} node(s), but each needs one task: {remedy}"
    if "gpus-per-task" in script.options:
        text = f"--gpus-per-task binds GPUs to tasks: write #SBATCH --gpus-per-node={needs.gpus}"
        yield script.line("gpus-per-task"), text


def _cores(script: Script, needs: Needs) -> Found:
    cores = script.get("cpus-per-task")
    wanted = f"#SBATCH --cpus-per-task={needs.cores or 8}"
    if not cores:
        yield 0, f"without --cpus-per-task the job gets one core, and the GPU waits for images: add {wanted}"
    elif not cores.isdigit():
        yield script.line("cpus-per-task"), f"--cpus-per-task={cores} is no number: write {wanted}"
    elif int(cores) < needs.cores:
        yield script.line("cpus-per-task"), f"{cores} cores cannot feed the GPUs of a node: write {wanted}"


def _gpus(script: Script, needs: Needs) -> Found:
    typed = f"{needs.gpu}:{needs.gpus}" if needs.gpu else str(needs.gpus)
    remedy = f"write #SBATCH --gpus-per-node={typed}"
    nodes = script.get("nodes")
    if nodes and nodes != str(needs.nodes):
        yield (
            script.line("nodes"),
            f"--nodes={nodes}, but the plan has {needs.nodes}: write #SBATCH --nodes={needs.nodes}",
        )
    asked = [name for name in ("gpus-per-node", "gres", "gpus") if script.get(name)]
    if not asked and "gpus-per-task" not in script.options:
        yield 0, f"no GPU is asked for: {remedy}"
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
    except ValueError as error:
        yield line, f"--time: {error}"
        return
    least = STARTUP_SECONDS + needs.epoch_seconds + CHECKPOINT_SECONDS
    if limit <= least:
        yield line, f"--time={text} is shorter than start-up and one epoch: write --time={ceil(least / 60)} or more"
    elif (again := requeues(limit, needs.whole_seconds)) > 0:
        whole = needs.whole_seconds + STARTUP_SECONDS + CHECKPOINT_SECONDS
        text = f"--time={text} is shorter than the run ({whole / 3600:.1f} h), to be requeued {again} time(s)"
        yield line, f"{text}: fine with --requeue, or write --time={ceil(whole / 60)}"


def _memory(script: Script, needs: Needs) -> Found:
    for name, times in (
        ("mem", 1),
        ("mem-per-cpu", int(script.get("cpus-per-task")) if script.get("cpus-per-task").isdigit() else 1),
        ("mem-per-gpu", needs.gpus),
    ):
        if not script.get(name):
            continue
        try:
            found = gibibytes(script.get(name)) * times
        except ValueError as error:
            yield script.line(name), f"--{name}: {error}"
            continue
        if found < needs.host_gib:
            unit = " (a number without a unit is megabytes)" if script.get(name).isdigit() else ""
            text = f"--{name}={script.get(name)} is {found:.1f} GiB a node{unit}, but the processes need about"
            yield script.line(name), f"{text} {needs.host_gib:.0f}: write #SBATCH --mem={ceil(needs.host_gib)}G"


RULES: dict[str, Callable[[Script, Needs], Found]] = {
    "form": _form, "option names": _names, "output folder": _output, "requeue": _requeue, "signal": _signal,
    "tasks": _tasks, "cores": _cores, "gpus": _gpus, "time": _time, "memory": _memory,
}  # fmt: skip


def check(text: str, needs: Needs) -> list[Problem]:
    """Every mistake of a script, in the order of the rules."""
    script = read(text)
    return [Problem(rule, *found) for rule, look in RULES.items() for found in look(script, needs)]
