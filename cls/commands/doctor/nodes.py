"""Transports between the nodes of a SLURM job step: ``srun --nodes=2 --ntasks-per-node=1 cls doctor``.

The tasks meet where the processes of a training run meet: in a TCP store of the first node, at the port that
``slurm/train.sh`` uses. Task 0 names one trial after the other; on each node one task starts that node's processes,
kills them if they hang, and answers.
"""

import fcntl
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from cls.commands.doctor.findings import Finding
from cls.commands.doctor.transport import OVER, START_SECONDS, Trial, run_ranks
from cls.commands.doctor.trials import judge, tried

POLL_SECONDS = 0.2
PREFIX = "cls doctor"  # of the keys: a run may use the same store
SIOCGIFADDR = 0x8915  # ioctl: the IPv4 address of an interface
Settings = dict[str, list[dict[str, str]]]  # environment variables of each node, by the text that is shown
HOPELESS = "no setting helps: run on one node, or ask the administrator which network these nodes share"


class Step(NamedTuple):
    """This task in a step that ``srun`` started on several nodes."""

    node: int  # from 0; of several tasks on a node only the first one is here
    names: tuple[str, ...]  # of the nodes
    port: int

    @property
    def name(self) -> str:
        return self.names[self.node]


def slurm_step(env: Mapping[str, str]) -> Step | None:
    """The step of this task; None outside of one and in one with a single node."""
    if int(env.get("SLURM_STEP_NUM_NODES", "1")) < 2:
        return None
    port = 20000 + int(env["SLURM_JOB_ID"]) % 10000
    return Step(int(env["SLURM_NODEID"]), hostnames(env["SLURM_STEP_NODELIST"]), port)


def hostnames(text: str) -> tuple[str, ...]:
    """'gpu-[01-02,7],login' -> gpu-01, gpu-02, gpu-7, login; a container on a node often has no scontrol."""
    names: list[str] = []
    for word in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = re.split(r"\[([^\]]*)\]", word)  # every second one was in brackets
        choices = [_numbers(part) if place % 2 else [part] for place, part in enumerate(parts)]
        names += map("".join, product(*choices))
    return tuple(names)


def _numbers(text: str) -> list[str]:
    """'01-03,7' -> 01, 02, 03, 7."""
    found = []
    for each in text.split(","):
        low, _, high = each.partition("-")
        found += [f"{number:0{len(low)}d}" for number in range(int(low), int(high or low) + 1)]
    return found


class Meeting:
    """The tasks of a step, connected by a store; ``problem`` says why this task is not connected, or is ''.

    ``seconds``: as in :func:`~cls.commands.doctor.transport.run_ranks`, and ``start_seconds``, for which a task also
    waits for the others to connect.
    """

    def __init__(self, step: Step, seconds: float, start_seconds: float = START_SECONDS) -> None:
        self.step, self.seconds, self.start_seconds, self.problem = step, seconds, start_seconds, ""
        self.number = 0  # of the next trial
        self.patience = start_seconds + 8 * (start_seconds + 3 * seconds)  # a node that has to kill 8 trials of its own
        first, timeout = step.node == 0, timedelta(seconds=start_seconds)
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not export it by name
                step.names[0], step.port, is_master=first, timeout=timeout, wait_for_workers=False
            )
            self.store = dist.PrefixStore(PREFIX, store)  # type: ignore[attr-defined]  # as above
            self.store.set(f"here {step.node}", "")
        except RuntimeError as error:
            self.problem = str(error).splitlines()[0]

    def conclude(self, findings: list[Finding], show: Callable[[Finding], None]) -> list[Finding] | None:
        """Try the transports between the nodes.

        Returns the findings of all nodes in task 0, and None in the others, whose ``findings`` task 0 reports; if this
        task found no other, its own and the reason. ``show`` is called with each new finding.
        """
        if self.problem:
            return self._alone(findings, show)
        try:
            if self.step.node:
                self._follow(findings)
                return None
            return self._lead(findings, show)
        except RuntimeError as error:  # the store's: task 0 has ended
            self.problem = str(error).splitlines()[0]
            return self._alone(findings, show)

    def _alone(self, findings: list[Finding], show: Callable[[Finding], None]) -> list[Finding]:
        first, port = self.step.names[0], self.step.port
        remedy = f"free port {port} of {first} (ss -ltnp), or open it between the nodes; check `getent hosts {first}`"
        finding = Finding("bad", "nodes", f"{self.step.name} cannot use {first}:{port}: {self.problem}", remedy)
        show(finding)
        return [*findings, finding]

    # --- task 0 ---

    def _lead(self, findings: list[Finding], show: Callable[[Finding], None]) -> list[Finding]:
        try:
            late = self._missing("here", self.start_seconds) or self._missing("ready", self.patience)
            if late:
                remedy = (
                    "start it on each node (srun --ntasks-per-node=1 cls doctor), or open the port between the nodes"
                )
                found = f"no answer from {', '.join(late)} at {self.step.names[0]}:{self.step.port}"
                findings = [*findings, Finding("bad", "nodes", found, remedy)]
                show(findings[-1])
                return findings
            ready = [self._get(f"ready {node}") for node in range(1, len(self.step.names))]
            findings = findings + [Finding(**item) for each in ready for item in each["findings"]]
            return findings + self._trials([facts_of(self.step), *(each["facts"] for each in ready)], show)
        finally:
            self.store.set("end", "")
            self._missing("left", 4 * POLL_SECONDS)  # the store ends with this process

    def _missing(self, key: str, seconds: float) -> list[str]:
        """The other nodes that have not set this key after ``seconds``."""
        left, deadline = range(1, len(self.step.names)), time.monotonic() + seconds
        while missing := [node for node in left if not self.store.check([f"{key} {node}"])]:
            if time.monotonic() > deadline:
                return [self.step.names[node] for node in missing]
            time.sleep(POLL_SECONDS)
        return []

    def _trials(self, facts: list[dict[str, Any]], show: Callable[[Finding], None]) -> list[Finding]:
        """gloo with a process on each node, and NCCL with one on each GPU if every node has one."""
        findings, names = list[Finding](), self.step.names
        interfaces, gpus = [fact["interface"] for fact in facts], [fact["gpus"] for fact in facts]
        kinds = [("gloo", [1] * len(names))] + ([("nccl", gpus)] if all(gpus) else [])
        for backend, ranks in kinds:
            settings = variables(backend, interfaces, names)
            trials = tried(backend, list(settings), partial(self._attempt, backend, ranks, settings))
            found, _ = judge(f"{backend} between {len(names)} nodes", trials, HOPELESS)
            for finding in found:
                show(finding)
            findings += found
        return findings

    def _attempt(
        self, backend: str, ranks: list[int], settings: Mapping[str, list[dict[str, str]]], text: str
    ) -> Trial:
        """The trial of one setting, by all nodes."""
        number, self.number, names = self.number, self.number + 1, self.step.names
        order = {"backend": backend, "ranks": ranks, "variables": settings.get(text, [{}] * len(names))}
        self.store.set(f"trial {number}", json.dumps(order))
        results = {names[0]: self._carry_out(number, order)}
        late = self._missing(f"result {number}", 30 + 3 * self.seconds)  # they started and end with this node's
        for node, name in enumerate(names[1:], 1):
            silent = Trial(sum(ranks), problem="no answer")
            results[name] = silent if name in late else Trial(**self._get(f"result {number} {node}"))
        problems = {name: found.problem for name, found in results.items() if found.problem}
        for name in sorted(problems, key=lambda name: OVER in problems[name]):  # first the one that ended the others
            return Trial(sum(ranks), problem=f"{name}: {problems[name]}")
        return Trial(sum(ranks), min(found.rate for found in results.values()), results[names[0]].total)

    # --- every task ---

    def _follow(self, findings: list[Finding]) -> None:
        """Answer task 0 until it has ended."""
        ready = {"facts": facts_of(self.step), "findings": [asdict(finding) for finding in findings]}
        self.store.set(f"ready {self.step.node}", json.dumps(ready))
        deadline = time.monotonic() + self.patience
        while not self.store.check(["end"]):
            if self.store.check([f"trial {self.number}"]):
                self._carry_out(self.number, self._get(f"trial {self.number}"))
                self.number, deadline = self.number + 1, time.monotonic() + self.patience
            elif time.monotonic() > deadline:
                raise RuntimeError(f"no answer from {self.step.names[0]}")
            time.sleep(POLL_SECONDS)
        self.store.set(f"left {self.step.node}", "")

    def _carry_out(self, number: int, order: dict[str, Any]) -> Trial:
        """This node's part of a trial, which ends as soon as a process of any node fails."""
        node, counts = self.step.node, order["ranks"]
        begin = sum(counts[:node])
        place: dict[str, str | int] = {
            "host": self.step.names[0],
            "port": self.step.port,
            "prefix": f"{PREFIX} {number}",
        }
        found = run_ranks(
            order["backend"], range(begin, begin + counts[node]), sum(counts), place, self.seconds,
            order["variables"][node], self.start_seconds, lambda: bool(self.store.check([f"failed {number}"])),
        )  # fmt: skip
        if found.problem:
            self.store.set(f"failed {number}", "")
        self.store.set(f"result {number} {node}", json.dumps(asdict(found)))
        return found

    def _get(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.get(key))
        return found


def facts_of(step: Step) -> dict[str, Any]:
    """What task 0 must know of a node."""
    other = step.names[0] if step.node else step.names[1]
    return {"gpus": torch.cuda.device_count(), "interface": interface(other)}


def interface(host: str) -> str:
    """The network interface that leads to a host by IPv4; '' if none is found."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
            found.connect((host, 9))  # sends nothing
            own = socket.inet_aton(found.getsockname()[0])
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(found, SIOCGIFADDR, struct.pack("256s", name.encode()))
                except OSError:  # it has no address
                    continue
                if answer[20:24] == own:
                    return name
    except OSError:
        pass
    return ""


def variables(backend: str, interfaces: Sequence[str], names: Sequence[str]) -> Settings:
    """The settings that are worth a trial between nodes, and what each means on every node."""
    name = f"{backend.upper()}_SOCKET_IFNAME"
    named = ", ".join(f"{name}={found} on {node}" for node, found in zip(names, interfaces, strict=True))
    text = f"{name}={interfaces[0]}" if len(set(interfaces)) == 1 else named
    by_name = {text: [{name: found} for found in interfaces]} if all(interfaces) else {}
    if backend == "gloo":
        return by_name
    plain = {"NCCL_IB_DISABLE": "1"}  # Ethernet in place of an InfiniBand that does not work
    both = {f"NCCL_IB_DISABLE=1 {text}": [plain | own for own in each] for text, each in by_name.items()}
    return {"NCCL_IB_DISABLE=1": [plain] * len(names)} | by_name | both
