"""`cls doctor`: each check on this machine, on small file systems of its own, or on the numbers of other machines."""

import ctypes
import http.server
import json
import math
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from cls.commands.doctor import gpus, measure
from cls.commands.doctor.findings import Finding
from cls.commands.doctor.gpus import gpu
from cls.commands.doctor.measure import Quota
from cls.commands.doctor.run import (  # fmt: skip
    caches,
    core_finding,
    doctor,
    not_ready,
    quota_finding,
    run_disk,
    shared_memory,
    shm_finding,
    slurm,
    software,
    user_data,
    wandb_login,
)
from cls.commands.doctor.transport import Trial, trial
from cls.commands.doctor.trials import judge, transports
from cls.runtime import system

GIB = 1 << 30


@pytest.fixture
def server() -> Iterator[str]:
    """A web server that knows no address: it answers every request with 404 or 501."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ranks() -> dict[int, int]:
    """Process ids of this process's trials that run now, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if parent == str(os.getpid()) and b"cls.commands.doctor.transport" in words:
            found[json.loads(words[words.index(b"cls.commands.doctor.transport") + 1])["rank"]] = int(folder.name)
    return found


@pytest.mark.integration
def test_the_doctor_examines_this_machine(
    tmp_path: Path, photos: Path, server: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("CLS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", server)
    closed = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("WANDB_BASE_URL", closed.replace("//", "//user:s3cret@"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "²")  # a digit to isdigit(), no number to int(): the check itself fails
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    document = doctor(str(tmp_path / "runs" / "x"), str(photos), True, 0.3)
    assert document is not None

    lines = [line for line in capfd.readouterr().err.splitlines() if re.match(r"(ok|warn|bad) ", line)]
    assert len(lines) == len(document)
    for line, item in zip(lines, document, strict=True):
        assert line.startswith(f"{item['state']:<4}  {item['name']}  {item['found']}")
        assert line.endswith(f"  -> {item['remedy']}") if item["remedy"] else "->" not in line
        assert item["remedy"] or item["state"] == "ok" or "could not be examined" in item["found"]
    assert "s3cret" not in json.dumps(document)
    found = {item["name"]: item for item in document}
    assert set(found) >= {"software", "GPU", "cores", "memory", "/dev/shm", "CLS_CACHE", "TORCH_HOME", "HF_HUB_CACHE",
                          "W&B", "network", "SLURM", "disk", "data", "gloo on 2 processes", "transport"}  # fmt: skip
    assert found["GPU"]["found"] == "no GPU: CPU runs only"
    assert f" of the machine's {os.cpu_count()}" in found["cores"]["found"]
    network = {item["found"].split()[0]: item for item in document if item["name"] == "network"}
    assert network[server]["state"] == "ok"
    assert network[closed]["state"] == "warn" and "Connection refused" in network[closed]["found"]
    assert found["SLURM"]["state"] == "warn" and "could not be examined: ValueError" in found["SLURM"]["found"]
    assert found["gloo on 2 processes"]["state"] == "ok" and found["gloo on 2 processes"]["found"].endswith(" GB/s")
    assert found["transport"]["found"] == "nothing to save: the defaults are best"
    assert os.listdir(tmp_path) == []  # the measured file is deleted, and nothing else was made


@pytest.mark.integration
def test_two_gloo_processes_add_and_exit() -> None:
    found = trial("gloo", 2, 0.3, {})
    assert (found.problem, found.world_size, found.total) == ("", 2, 1.0 + 2.0)
    assert found.rate > 0 and ranks() == {}


@pytest.mark.integration
def test_a_transport_that_hangs_is_reported_in_time_and_leaves_no_process() -> None:
    results: list[Trial] = []
    thread = threading.Thread(target=lambda: results.append(trial("gloo", 2, 0.5, {}, start_seconds=2.0)))
    thread.start()
    end = time.monotonic() + 30
    while set(running := ranks()) != {0, 1}:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(running[1], signal.SIGSTOP)
    thread.join(60)
    assert [found.problem.split(":")[0:2] for found in results] == [["hung", " no answer within 4 s"]]
    assert results[0].rate == 0 and ranks() == {}
    assert not any(Path(f"/proc/{pid}").exists() for pid in running.values())


@pytest.mark.integration
def test_a_bad_setting_is_reported_and_the_one_that_works_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network interface that does not exist, as an inherited environment may name it."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    monkeypatch.setenv("CLS_CACHE", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    default, fixed, saved = transports(0.2, save=True)
    assert (default.state, default.name) == ("bad", "gloo on 2 processes")
    assert re.match(r"rank \d ended with status 1: .*nosuch0", default.found)
    assert default.remedy == "export GLOO_SOCKET_IFNAME=lo"
    assert (fixed.state, fixed.name) == ("ok", "gloo on 2 processes with GLOO_SOCKET_IFNAME=lo")
    file = tmp_path / f"nccl-{socket.gethostname()}.sh"
    assert saved.found == f"{file} now exports GLOO_SOCKET_IFNAME=lo"
    shell = subprocess.run(["sh", "-c", f'. "{file}"; printenv GLOO_SOCKET_IFNAME'], capture_output=True, text=True)
    assert shell.stdout == "lo\n" and ranks() == {}


def test_what_is_concluded_from_the_transports() -> None:
    fast, slow, hung = Trial(4, rate=40e9), Trial(4, rate=19e9), Trial(4, problem="hung: no answer within 75 s")
    p2p, shm = "NCCL_P2P_DISABLE=1", "NCCL_SHM_DISABLE=1"

    def states(trials: dict[str, Trial]) -> tuple[list[tuple[str, str]], list[str]]:
        findings, exports = judge("nccl on 4 processes", trials, "no setting helps: …")
        assert [finding.name.partition(" with ")[2] for finding in findings] == list(trials)
        return [(finding.state, finding.remedy) for finding in findings], exports

    assert states({"": fast, p2p: slow, shm: hung}) == ([("ok", "")] * 3, [])
    assert states({"": Trial(4, rate=20e9), p2p: fast}) == ([("ok", "")] * 2, [])  # twice as fast is not yet far faster
    assert states({"": slow, p2p: fast}) == ([("warn", f"export {p2p}"), ("ok", "")], [p2p])
    assert states({"": hung, p2p: slow, shm: fast}) == ([("bad", f"export {shm}"), ("ok", ""), ("ok", "")], [shm])
    [(state, remedy), *_], exports = states({"": hung, p2p: hung})
    assert (state, exports) == ("bad", []) and remedy.startswith("no setting helps")
    assert judge("nccl", {"": fast}, "")[0][0].found == "40.00 GB/s"


def test_only_bad_findings_are_an_error() -> None:
    ok, warn = ({"state": state, "name": state, "found": "x", "remedy": "y"} for state in ("ok", "warn"))
    assert not_ready([ok, warn]) is None
    bad = [{"state": "bad", "name": name, "found": "full", "remedy": "empty it"} for name in ("disk", "GPU")]
    error = not_ready([ok, bad[0], warn, bad[1]])
    assert isinstance(error, ValueError)
    assert str(error) == "this machine is not ready:\n  disk: full -> empty it\n  GPU: full -> empty it"


def test_cores_gpus_and_shared_memory_by_their_numbers() -> None:
    assert core_finding(64, 16, math.inf).state == "ok"
    few = core_finding(64, 16, 3.5)
    assert (
        few.state == "warn"
        and few.found == "16 of the machine's 64, CPU time of 3.5"
        and "--data.workers 3," in few.remedy
    )
    assert "--cpus-per-task" in core_finding(64, 1, math.inf).remedy and core_finding(1, 1, math.inf).state == "ok"

    assert shm_finding(64 << 20, 64 << 20, 1).state == shm_finding(64 << 20, 64 << 20, 2).state == "ok"
    small = shm_finding(64 << 20, 64 << 20, 4)  # docker's default
    assert small.state == "bad" and small.found == "67 of 67 MB free; 4 processes want 134 MB"
    assert "--shm-size" in small.remedy and "NCCL_SHM_DISABLE=1" in small.remedy

    assert gpu(0, "A6000", 47 * GIB, 48 * GIB, 0).state == "ok"
    taken = gpu(1, "A6000", 20 * GIB, 48 * GIB, 2 * GIB)
    assert taken.state == "warn" and "20.0 of 48.0 GiB free; 26.0 GiB are used by" in taken.found


@pytest.mark.integration
def test_gpus_are_examined_in_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's own process makes no context: what would make one is forbidden here, but not in the subprocess."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("set_device", "mem_get_info", "get_device_name", "init", "_lazy_init", "synchronize"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_: pytest.fail("a context in the doctor's process"))
    assert gpus.gpus() == [Finding("ok", "GPU", "no GPU: CPU runs only")]
    assert [finding.state for finding in (*software(), *shared_memory())] == ["ok", "ok"]
    if not torch.cuda.is_available():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        [bad] = gpus.gpus()
        assert bad.state == "bad" and "CUDA_VISIBLE_DEVICES=0" in bad.found and bad.remedy.startswith("install")


@pytest.mark.integration
def test_a_driver_that_hangs_or_crashes_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    monkeypatch.setattr("sys.executable", str(program))
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    since = time.monotonic()
    [hung] = gpus.gpus(0.2)
    assert (hung.state, hung.found) == ("bad", "no answer within 0 s") and time.monotonic() - since < 10
    program.write_text("#!/bin/sh\necho driver: Xid 79 >&2; echo >&2; exit 3\n")
    [crashed] = gpus.gpus()
    assert crashed.state == "bad" and crashed.found.endswith("ended with status 3: driver: Xid 79")


def test_one_taken_or_unusable_gpu_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = ["", "CUDA out of memory. Tried to …", "CUDA error: no kernel image is available"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr(gpus, "first_allocation", lambda index: problems[index])
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: (47 * GIB, 48 * GIB))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "A6000")
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda index: 0)
    free, taken, unusable = gpus.examine()
    assert (free.state, free.name, free.found) == ("ok", "GPU 0", "A6000, 47.0 of 48.0 GiB free")
    assert (taken.state, taken.name) == ("bad", "GPU 1") and taken.found.startswith("taken by another program (CUDA")
    assert "nvidia-smi" in taken.remedy and "install" not in taken.remedy
    assert (unusable.state, unusable.name) == ("bad", "GPU 2") and unusable.remedy.startswith("install that torch")


def test_a_slurm_job_is_described() -> None:
    env = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "8"}
    [unknown] = slurm(env)
    assert unknown.state == "warn" and unknown.found.startswith("job 12, 2 nodes, 8 cores a task, 4 GPUs here; its end")
    [long] = slurm(env | {"SLURM_JOB_END_TIME": str(int(time.time()) + 7215)})
    assert long.state == "ok" and long.found.endswith("ends in 120 minutes")
    [short] = slurm(env | {"SLURM_JOB_END_TIME": str(round(time.time()) + 230)})
    assert short.state == "warn" and short.found.endswith("ends in 4 minutes")
    assert slurm({})[0].found.startswith("not inside a job")


def test_limits_of_control_groups_are_the_tightest_above_this_process(tmp_path: Path) -> None:
    def put(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    assert system.cgroup_limits(tmp_path) == system.Limits(math.inf, math.inf)
    put("proc/self/cgroup", "0::/slurm/job_7/step_0")
    put("sys/fs/cgroup/slurm/job_7/step_0/cpu.max", "max 100000")
    put("sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max")
    assert system.cgroup_limits(tmp_path) == system.Limits(math.inf, math.inf)
    put("sys/fs/cgroup/slurm/job_7/cpu.max", "250000 100000")
    put("sys/fs/cgroup/slurm/cpu.max", "800000 100000")
    put("sys/fs/cgroup/slurm/job_7/memory.max", "8589934592")
    put("sys/fs/cgroup/slurm/memory.max", "17179869184")
    put("sys/fs/cgroup/other/memory.max", "1")
    assert system.cgroup_limits(tmp_path) == system.Limits(2.5, 8 * GIB)

    put("proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n1:name=systemd:/\n0::/")  # version 1
    put("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4294967296")
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    put("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "150000")
    put("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "50000")
    put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert system.cgroup_limits(tmp_path) == system.Limits(3.0, 4 * GIB)


QUOTA = """\
Disk quotas for user anna (uid 1234):
     Filesystem   space   quota   limit   grace   files   quota   limit   grace
nfs1:/export/home  19.5G*    19G     20G   6days   81234       0       0
      /dev/sda1      4K      0K      0K               1       0       0
 nfs2:/scratch    1200M       0K   1024G            200       0       0
"""


def test_quotas_are_read_from_the_command_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, scratch = Quota("nfs1:/export/home", 19.5 * GIB, 19 * GIB), Quota("nfs2:/scratch", 1200 * 1024**2, 1024 * GIB)
    assert measure.parse_quota(QUOTA) == [home, scratch]
    assert measure.parse_quota("Disk quotas for user anna (uid 1234): none\n") == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure.quotas() == []
    (tmp_path / "quota").write_text(f"#!/bin/sh\n[ $1 = -sw ] && echo '{QUOTA}'\n")
    (tmp_path / "quota").chmod(0o755)
    assert measure.quotas() == [home, scratch]
    assert quota_finding(home).state == "bad" and "export HF_HOME" in quota_finding(home).remedy
    assert quota_finding(Quota("x", 12 * GIB, 20 * GIB)).state == "warn"
    assert quota_finding(scratch).state == "ok"


def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    found = measure.disk(tmp_path, seconds=0.05)
    assert found.write > 0 and found.read > 0 and abs(found.skew) < 1
    assert list(tmp_path.iterdir()) == []
    assert measure.existing(tmp_path / "a" / "b") == tmp_path
    assert run_disk(tmp_path / "a" / "b")[0].found.startswith(f"{tmp_path}: writes ")


def test_reading_counts_what_it_has_read(tmp_path: Path) -> None:
    for i in range(450):
        file = tmp_path / f"class{i % 3}" / f"{i:03d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * (1000 + i))
    (tmp_path / "notes.txt").write_bytes(b"y" * 5000)
    order = [int(path.stem) for label in range(3) for path in sorted((tmp_path / f"class{label}").iterdir())]
    found = measure.reading(tmp_path)
    assert (found.files, found.bytes) == (200, sum(1000 + i for i in order[::2][:200]))
    assert 0 < found.latency < found.seconds
    one = measure.reading(tmp_path / "class0" / "003.jpg")
    assert (one.files, one.bytes) == (1, 1003)

    assert user_data(tmp_path)[0].state == "ok" and "files/s" in user_data(tmp_path)[0].found
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "no", "does not exist"), (tmp_path / "empty", "has no images")):
        [bad] = user_data(path)
        assert bad.state == "bad" and message in bad.found and bad.remedy


def test_servers_that_answer_are_closed_or_are_silent(server: str) -> None:
    closed = f"http://127.0.0.1:{free_port()}"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        silent = f"http://127.0.0.1:{listening.getsockname()[1]}"
        found = measure.reach([server, closed, silent, "nonsense"], 0.5)
    assert found[server] == "" and "Connection refused" in found[closed]
    assert "timed out" in found[silent] or found[silent] == "no answer in 0.5 s"
    assert "unknown url type" in found["nonsense"]


def in_own_namespace(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked process that may mount file systems, which only it sees."""
    libc, (reading, writing) = ctypes.CDLL(None, use_errno=True), os.pipe()
    user, group, pid = os.getuid(), os.getgid(), os.fork()
    if not pid:
        try:
            if libc.unshare(0x10020000):  # CLONE_NEWUSER | CLONE_NEWNS
                raise OSError(ctypes.get_errno(), "no namespace")
            for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                Path("/proc/self", name).write_text(text)
            result: Any = ["done", work()]
        except PermissionError as error:
            result = ["skip", str(error)]
        except BaseException as error:
            result = ["failed", repr(error)]
        with os.fdopen(writing, "w") as file:
            json.dump(result, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        outcome, result = json.load(file)
    os.waitpid(pid, 0)
    if outcome == "skip" and not os.environ.get("CI"):
        pytest.skip(f"needs a mount namespace of its own: {result}")
    assert outcome == "done", result
    return result


def test_small_full_and_read_only_file_systems_and_a_key_that_stays_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real mounts, in a mount namespace of its own."""
    key = "0123456789abcdef" * 2 + "01234567"
    for name, value in {"CLS_CACHE": f"{tmp_path}/readonly/cls", "TORCH_HOME": f"{tmp_path}/full/torch",
                        "WANDB_API_KEY": key, "HOME": str(tmp_path)}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def examine() -> Any:
        for path, options in (
            ("/dev/shm", "size=256k"),
            (f"{tmp_path}/full", "size=4m"),
            (f"{tmp_path}/readonly", "ro"),
        ):
            os.makedirs(path, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
        findings = [*shared_memory(), *caches(), *run_disk(tmp_path / "full" / "run"), *wandb_login()]
        return [[asdict(item) for item in findings], os.listdir(tmp_path / "full")]

    findings, left = in_own_namespace(examine)
    found = {item["name"]: item for item in findings}
    assert found["/dev/shm"]["state"] == "bad" and "--shm-size" in found["/dev/shm"]["remedy"]
    assert found["CLS_CACHE"]["state"] == "bad"
    assert found["CLS_CACHE"]["found"].endswith(f"{tmp_path}/readonly cannot be written")
    assert found["TORCH_HOME"]["state"] == "warn" and found["TORCH_HOME"]["remedy"].startswith("export TORCH_HOME=")
    assert (found["disk"]["state"], found["disk"]["found"]) == ("bad", f"{tmp_path}/full: No space left on device")
    assert left == []
    assert found["W&B"] == {"state": "ok", "name": "W&B", "found": "online, an API key is known", "remedy": ""}
    assert key not in json.dumps(findings)
