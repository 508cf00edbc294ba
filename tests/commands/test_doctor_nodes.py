"""`srun cls doctor` on several nodes: two tasks on this machine, each a process that believes it is a node's."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cls.commands.doctor import nodes
from cls.commands.doctor.findings import Finding
from cls.commands.doctor.nodes import Meeting, Step, hostnames, interface, slurm_step, variables
from cls.commands.doctor.transport import Trial
from tests.harness import ROOT, environment

NAMES = ("127.0.0.1", "localhost")
TASK = """
import json, sys
from dataclasses import asdict
from cls.commands.doctor.findings import Finding
from cls.commands.doctor.nodes import Meeting, Step
node, port, start_seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
step = Step(node, ("127.0.0.1", "localhost"), port)
shown = []
found = Meeting(step, 0.2, start_seconds).conclude([Finding("ok", f"{step.name}: disk", "large")], shown.append)
print(json.dumps([None if found is None else [asdict(each) for each in found], [each.name for each in shown]]))
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu7", "gpu7"),
        ("gpu-[01-03,7],login", "gpu-01 gpu-02 gpu-03 gpu-7 login"),
        ("a[9-11]-ib,b[1]", "a9-ib a10-ib a11-ib b1"),
        ("rack[1-2]n[08-09]", "rack1n08 rack1n09 rack2n08 rack2n09"),
    ],
)
def test_a_list_of_nodes_is_expanded_as_slurm_does(text: str, names: str) -> None:
    assert hostnames(text) == tuple(names.split())


def test_a_step_on_several_nodes_is_recognised_by_sruns_variables() -> None:
    job = {"SLURM_JOB_ID": "123456", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu-[1-2]"}
    assert slurm_step({}) is None and slurm_step(job) is None  # a batch script, which runs on one node only
    assert slurm_step(job | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "gpu-1"}) is None
    step = slurm_step(job | {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu-[1-2]"})
    assert step == Step(1, ("gpu-1", "gpu-2"), 23456) and step.name == "gpu-2"


def test_the_interface_is_the_one_that_leads_there() -> None:
    assert interface("127.0.0.1") == "lo"
    assert interface("no.such.host.invalid") == ""


def test_what_is_worth_a_trial_between_nodes() -> None:
    names = ("a", "b")
    same = variables("gloo", ["eth0", "eth0"], names)
    assert same == {"GLOO_SOCKET_IFNAME=eth0": [{"GLOO_SOCKET_IFNAME": "eth0"}] * 2}
    ib, different = {"NCCL_IB_DISABLE": "1"}, "NCCL_SOCKET_IFNAME=eth0 on a, NCCL_SOCKET_IFNAME=eno1 on b"
    own = [{"NCCL_SOCKET_IFNAME": "eth0"}, {"NCCL_SOCKET_IFNAME": "eno1"}]
    assert variables("nccl", ["eth0", "eno1"], names) == {
        "NCCL_IB_DISABLE=1": [ib, ib], different: own, f"NCCL_IB_DISABLE=1 {different}": [ib | own[0], ib | own[1]]
    }  # fmt: skip
    assert variables("gloo", ["eth0", ""], names) == {}
    assert variables("nccl", ["", "eth0"], names) == {"NCCL_IB_DISABLE=1": [ib, ib]}


def test_nccl_takes_all_gpus_of_all_nodes_and_every_setting_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes with 2 and 3 GPUs as two threads; no GPU here: what would be started is recorded."""
    started: list[tuple[str, list[int], int, str]] = []

    def recorded(backend: str, ranks: range, world_size: int, place: Any, seconds: float, env: Any, *_: Any) -> Trial:
        started.append((backend, list(ranks), world_size, " ".join(f"{key}={value}" for key, value in env.items())))
        return Trial(world_size, rate=9e9 if env == {"NCCL_IB_DISABLE": "1"} else 1e9, total=15.0)

    monkeypatch.setattr(nodes, "run_ranks", recorded)
    facts = [{"gpus": 2, "interface": "ib0"}, {"gpus": 3, "interface": "eth0"}]
    monkeypatch.setattr(nodes, "facts_of", lambda step: facts[step.node])
    port, shown, results = Tasks().port, list[Finding](), dict[int, Any]()

    def task(node: int) -> None:
        results[node] = Meeting(Step(node, NAMES, port), 0.1, 30).conclude([], shown.append)

    threads = [threading.Thread(target=task, args=(node,)) for node in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    name = "nccl between 2 nodes"
    own = "NCCL_SOCKET_IFNAME=ib0 on 127.0.0.1, NCCL_SOCKET_IFNAME=eth0 on localhost"
    assert [(each.state, each.name, each.remedy) for each in shown] == [
        ("ok", "gloo between 2 nodes", ""),
        ("warn", name, "export NCCL_IB_DISABLE=1"),
        ("ok", f"{name} with NCCL_IB_DISABLE=1", ""),
        ("ok", f"{name} with {own}", ""),
        ("ok", f"{name} with NCCL_IB_DISABLE=1 {own}", ""),
    ]
    assert results == {0: shown, 1: None}
    ib, ranks = "NCCL_IB_DISABLE=1", {0: [0, 1], 1: [2, 3, 4]}
    by_name = {0: "NCCL_SOCKET_IFNAME=ib0", 1: "NCCL_SOCKET_IFNAME=eth0"}
    expected = [("gloo", [node], 2, "") for node in (0, 1)]
    for settings in ({0: "", 1: ""}, {0: ib, 1: ib}, by_name, {node: f"{ib} {text}" for node, text in by_name.items()}):
        expected += [("nccl", ranks[node], 5, settings[node]) for node in (0, 1)]
    assert sorted(started) == sorted(expected)


class Tasks:
    """The tasks that were started, by node."""

    def __init__(self) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        self.processes: dict[int, subprocess.Popen[str]] = {}

    def start(self, node: int, start_seconds: float, **env: str) -> None:
        words = [sys.executable, "-c", TASK, str(node), str(self.port), str(start_seconds)]
        own = environment(CUDA_VISIBLE_DEVICES="", **env)
        self.processes[node] = subprocess.Popen(
            words, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def result(self, node: int) -> tuple[list[dict[str, str]] | None, list[str]]:
        """The findings that a task returned, and the names of those it showed."""
        output, errors = self.processes[node].communicate(timeout=120)
        assert self.processes[node].returncode == 0, errors
        found, shown = json.loads(output.splitlines()[-1])
        return found, shown

    def ranks(self) -> dict[int, int]:
        """Process ids of the trials that run now, by rank."""
        found: dict[int, int] = {}
        for task in self.processes.values():
            for pid in Path(f"/proc/{task.pid}/task/{task.pid}/children").read_text().split():
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if len(words) > 3 and "cls.commands.doctor.transport" in words:
                    found[json.loads(words[3])["rank"]] = int(pid)
        return found


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    found = Tasks()
    yield found
    for process in found.processes.values():
        process.kill()
        process.wait()


@pytest.mark.integration
def test_the_first_task_reports_all_nodes_and_what_lies_between_them(tasks: Tasks) -> None:
    for node in (1, 0):
        tasks.start(node, 60)
    found, shown = tasks.result(0)
    assert found is not None
    assert [each["name"] for each in found] == ["127.0.0.1: disk", "localhost: disk", "gloo between 2 nodes"]
    assert found[-1]["state"] == "ok" and found[-1]["found"].endswith(" GB/s") and shown == ["gloo between 2 nodes"]
    assert tasks.result(1) == (None, [])


@pytest.mark.integration
def test_the_setting_that_the_nodes_need_is_named(tasks: Tasks) -> None:
    """One node's environment names an interface that does not exist; the other node does not wait for it."""
    tasks.start(0, 60)
    tasks.start(1, 60, GLOO_SOCKET_IFNAME="nosuch0")
    found, _ = tasks.result(0)
    assert found is not None
    default, fixed = found[2:]
    assert (default["state"], default["remedy"]) == ("bad", "export GLOO_SOCKET_IFNAME=lo")
    assert re.match(r"localhost: rank 1 ended with status 1: .*nosuch0", default["found"])
    assert (fixed["state"], fixed["name"]) == ("ok", "gloo between 2 nodes with GLOO_SOCKET_IFNAME=lo")
    assert tasks.result(1) == (None, [])


@pytest.mark.integration
def test_a_transport_between_nodes_that_hangs_is_killed_on_both(tasks: Tasks) -> None:
    for node in (0, 1):
        tasks.start(node, 20)
    end = time.monotonic() + 100
    while set(running := tasks.ranks()) != {0, 1}:
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(running[1], signal.SIGSTOP)
    found, _ = tasks.result(0)
    assert found is not None and [each["state"] for each in found] == ["ok", "ok", "bad", "ok"]
    assert re.match(r"(127.0.0.1|localhost): hung: no answer within 21 s", found[2]["found"])
    assert found[2]["remedy"] == "export GLOO_SOCKET_IFNAME=lo"  # its trial was not frozen
    assert tasks.result(1) == (None, [])
    assert not any(Path(f"/proc/{pid}").exists() for pid in running.values())


@pytest.mark.integration
def test_a_node_that_is_not_there_is_named(tasks: Tasks) -> None:
    tasks.start(0, 3)
    found, shown = tasks.result(0)
    assert found is not None and [each["name"] for each in found] == ["127.0.0.1: disk", "nodes"] and shown == ["nodes"]
    assert found[1]["found"] == f"no answer from localhost at 127.0.0.1:{tasks.port}" and "srun" in found[1]["remedy"]
    tasks.start(1, 3)  # the first one has ended
    found, shown = tasks.result(1)
    assert found is not None and [each["state"] for each in found] == ["ok", "bad"] and shown == ["nodes"]
    assert found[1]["found"].startswith(f"localhost cannot use 127.0.0.1:{tasks.port}: ")
    assert "getent hosts 127.0.0.1" in found[1]["remedy"]


@pytest.mark.integration
def test_a_port_that_is_in_use_is_named(tasks: Tasks) -> None:
    with socket.create_server(("0.0.0.0", tasks.port)):
        tasks.start(0, 3)
        found, _ = tasks.result(0)
    assert found is not None and found[1]["state"] == "bad"
    assert f"127.0.0.1 cannot use 127.0.0.1:{tasks.port}" in found[1]["found"]
    assert f"free port {tasks.port}" in found[1]["remedy"]
