"""The scripts of slurm/ on a real SLURM: real daemons, jobs, signals, preemption; gloo processes in place of GPUs."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cls import recipes
from cls.commands.doctor.nodes import hostnames
from cls.commands.options import PlanOptions
from cls.commands.plan.run import command
from cls.config import from_yaml
from cls.tracking.events import read_events
from cls.tracking.goodput import attempts
from tests.harness import ROOT, environment, slurm
from tests.harness.records import Result, timeless
from tests.harness.runs import Runs
from tests.harness.slurm import Job, Slurm

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(slurm.reason()), reason=slurm.reason())]

# Long enough to be hit in the middle, with checkpoints inside epochs.
METHOD = """
--data.limit 100 --data.workers 0 --train.batch 16 --train.micro-batch 4 --train.epochs 5 --train.device cpu
--train.save-minutes 0.03 --track.wandb disabled
"""
RUN = ["digits", *METHOD.split()]
STEPS = 32
TINY = [*RUN, "--train.max-steps", "2", "--data.limit", "40"]
ONE = ("--gpus-per-node=1", "--cpus-per-task=1")
TWO = ("--gpus-per-node=2", "--cpus-per-task=2")


@pytest.fixture(scope="module")
def world() -> Iterator[Slurm]:
    with slurm.started() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submitted from here")
    return folder


@pytest.fixture(scope="module")
def whole(runs: Runs, place: Path) -> Result:
    """The uninterrupted run."""
    return here(runs, place / "whole", RUN)


def here(runs: Runs, out: Path, args: list[str]) -> Result:
    """On this machine, in one process."""
    result = runs.run(out, args)
    assert result.code == 0, result.output
    return result


def bits(result: Result) -> dict[str, Any]:
    """Record without times, and the final weights."""
    last = max((result.out / "checkpoints").glob("step-*"))
    weights = hashlib.sha256((last / "model.safetensors").read_bytes()).hexdigest()
    best = (result.out / "best" / "model.safetensors").read_bytes()
    header = int.from_bytes(best[:8], "little")  # it names the run directory
    return {"rows": timeless(result.rows), "weights": weights, "best": hashlib.sha256(best[8 + header :]).hexdigest()}


def masters(job: str) -> set[str]:
    """Where the processes of a job meet, read from the environment of each of them while they live."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            env = dict(item.partition("=")[::2] for item in path.read_text().split("\0"))
        except OSError:
            continue
        if env.get("SLURM_JOB_ID") == job and "LOCAL_RANK" in env:
            found.add((env["SLURMD_NODENAME"], env["RANK"], env["MASTER_ADDR"]))
    return found


@pytest.mark.promise
def test_a_short_job_has_the_bits_of_a_run_on_this_machine(world: Slurm, place: Path, runs: Runs) -> None:
    args = [*RUN, "--train.max-steps", "12"]
    check_job(world, place, args, here(runs, place / "short", args), 1)


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_job_has_the_bits_of_a_run_on_this_machine(world: Slurm, place: Path, whole: Result, nodes: int) -> None:
    check_job(world, place, RUN, whole, nodes)


def check_job(world: Slurm, place: Path, args: list[str], whole: Result, nodes: int) -> None:
    job = world.sbatch(place, f"--nodes={nodes}", *TWO, "slurm/train.sh", *args)
    out = place / "runs" / f"digits-{job.id}"
    job.steps(out, 1)
    met = masters(job.id)
    assert job.wait() == "COMPLETED 0:0", job.output()
    result = job.result(f"runs/{out.name}")
    assert result.exit["outcome"] == "done"
    first = "a6000-1" if nodes == 2 else "127.0.0.1"  # accelerate's own choice where there is no other node
    assert met == {(f"a6000-{1 + rank // 2}", str(rank), first) for rank in range(2 * nodes)}
    assert f"{nodes} node(s) x 2 process(es), cpu.yaml, first node a6000-1:{20000 + int(job.id)}" in result.output
    (attempt,) = attempts(read_events(out))
    assert attempt["processes"] == 2 * nodes and attempt["job"] == job.id and attempt["host"] == "a6000-1"
    assert attempt["nodes"] == ("a6000-1" if nodes == 1 else "a6000-[1-2]")
    assert attempt["seconds"]["startup"] > 1 and attempt["seconds"]["compute"] > 0 and 0 < attempt["goodput"] < 1
    assert bits(result) == bits(whole)


@pytest.mark.soak
def test_a_request_in_the_middle_of_an_epoch_changes_no_bit_and_a_finished_job_ends_at_once(
    world: Slurm, place: Path, whole: Result
) -> None:
    """Submitted from a folder of its own, without the caller's environment, with spaces in the paths."""
    here = place / "any where"
    here.mkdir()
    job = world.sbatch(here, "--export=NONE", *ONE, "slurm/a6000.sh", *RUN, "--out", "my run", OMP_NUM_THREADS="1")
    out = here / "my run"
    job.steps(out, 5)
    world.call("scancel", "--batch", "--signal=USR1", job.id)
    assert job.wait() == "COMPLETED 0:0", job.output()
    first, second = attempts(read_events(out))
    assert first["outcome"] == "stopped" and first["lost_steps"] == 0 and 5 <= first["steps"] < STEPS
    assert first["step"] + first["steps"] == second["step"] and second["outcome"] == "done"
    assert first["job"] == second["job"] == job.id and job.field("Restarts") == "1"
    assert second["seconds"]["queue"] > 0  # a requeued job waits for its old credentials to expire
    assert bits(job.result("my run")) == bits(whole)
    record = (out / "metrics.jsonl").read_bytes()
    assert world.call("scontrol", "requeue", job.id).returncode == 0  # as some versions do of their own accord
    assert job.wait() == "COMPLETED 0:0"
    assert "my run is finished" in job.output() and (out / "metrics.jsonl").read_bytes() == record
    assert len(attempts(read_events(out))) == 2


@pytest.mark.parametrize("partition", ["a6000", pytest.param("rtx3090", marks=pytest.mark.soak)])
def test_a_preempted_job_resumes(world: Slurm, place: Path, whole: Result, partition: str) -> None:
    """By a higher partition, with 15 seconds of notice and with none."""
    node = f"{partition}-1"
    job = world.sbatch(place, "-p", partition, "-w", node, *ONE, "slurm/train.sh", *RUN)
    out = place / "runs" / f"digits-{job.id}"
    job.steps(out, 8)
    urgent = world.sbatch(place, "-p", "urgent", "-w", node, "--exclusive", "--wrap", "sleep 1")
    assert urgent.wait() == "COMPLETED 0:0"
    assert job.wait() == "COMPLETED 0:0", job.output()
    table = attempts(read_events(out))
    assert len(table) == 2 and table[1]["outcome"] == "done" and int(job.field("Restarts")) >= 1
    assert 8 <= table[0]["steps"] + table[0]["lost_steps"] < STEPS
    if partition == "a6000":
        assert table[0]["outcome"] == "stopped" and table[0]["lost_steps"] == 0
    assert bits(job.result(f"runs/{out.name}")) == bits(whole)


@pytest.mark.soak
def test_a_job_that_is_preempted_twice_in_a_row_changes_no_bit_and_the_job_after_it_waits(
    world: Slurm, place: Path, whole: Result
) -> None:
    """The second time while the libraries of the second attempt are loaded: it stops after its first step."""
    job = world.sbatch(place, "-w", "a6000-1", *ONE, "slurm/train.sh", *RUN)
    out = place / "runs" / f"digits-{job.id}"
    after = world.sbatch(place, f"--dependency=afterok:{job.id}", "-w", "a6000-2", *ONE, "slurm/train.sh", *TINY)
    job.steps(out, 8)
    for attempt in (1, 2):
        urgent = world.sbatch(place, "-p", "urgent", "-w", "a6000-1", "--exclusive", "--wrap", "sleep 1")
        assert urgent.wait() == "COMPLETED 0:0"
        job.until(lambda attempt=attempt: job.field("Restarts") == str(attempt) and job.field("JobState") == "RUNNING")
        assert after.field("Reason") == "Dependency"
    assert job.wait() == "COMPLETED 0:0", job.output()
    assert attempts(read_events(out))[-1]["outcome"] == "done" and bits(job.result(f"runs/{out.name}")) == bits(whole)
    assert after.wait() == "COMPLETED 0:0", after.output()
    assert after.result(f"runs/digits-{after.id}").exit["outcome"] == "done"


def test_a_cancelled_job_is_final_and_its_run_resumes_elsewhere(world: Slurm, place: Path, whole: Result) -> None:
    """On the other partition, with twice as many GPUs."""
    job = world.sbatch(place, *ONE, "slurm/train.sh", *RUN, "--out", "moved")
    out = place / "moved"
    job.steps(out, 5)
    world.call("scancel", job.id)
    assert job.wait().startswith("CANCELLED") and job.field("Restarts") == "0"
    assert job.result("moved").exit["outcome"] == "stopped" and "SIGTERM" in job.result("moved").exit["reason"]
    assert "itself starts it again). Resume this run with: sbatch" in job.output()
    other = world.sbatch(place, *TWO, "slurm/rtx3090.sh", *RUN, "--out", "moved")
    assert other.wait() == "COMPLETED 0:0", other.output()
    assert [(attempt["processes"], attempt["host"], attempt["outcome"]) for attempt in attempts(read_events(out))] == [
        (1, "a6000-1", "stopped"), (2, "rtx3090-1", "done"),
    ]  # fmt: skip
    assert bits(other.result("moved")) == bits(whole)


def test_a_time_limit_loses_no_step_and_the_number_of_requeues_is_limited(world: Slurm, place: Path) -> None:
    """SLURM sends the request itself, up to a minute early; the run takes longer than any number of such limits."""
    run = [*RUN, "--train.epochs", "500"]
    job = world.sbatch(place, "-t", "1", "--signal=B:USR1@30", *ONE, "slurm/train.sh", *run, CLS_RESTARTS="1")
    out = place / "runs" / f"digits-{job.id}"
    job.until(lambda: job.field("Restarts") == "1")
    (first,) = attempts(read_events(out))
    assert first["outcome"] == "stopped" and first["lost_steps"] == 0 and first["steps"] > 0
    job.steps(out, first["steps"] + 1)
    world.call("scancel", "--batch", "--signal=USR1", job.id)
    assert job.wait() == "FAILED 85:0", job.output()
    assert job.field("Restarts") == "1" and "CLS_RESTARTS is 1" in job.output() and "TIMEOUT" not in job.output()
    assert [attempt["outcome"] for attempt in attempts(read_events(out))] == ["stopped", "stopped"]
    onward = re.search(r"Resume this run with: (sbatch .*)", job.output())
    assert onward and onward[1].startswith(f"sbatch '{world.checkout}/slurm/train.sh' 'digits'")
    assert world.call("scontrol", "requeue", job.id).returncode == 0  # a node that fails does the same
    assert job.wait() == "FAILED 1:0"
    assert len(attempts(read_events(out))) == 2  # the third attempt never began


@pytest.mark.parametrize(
    ("field", "code", "outcome"),
    [
        (("--data.size", "-1"), 2, "user_error"),
        pytest.param(("--optim.lr", "1e30", "--optim.schedule", "fixed"), 4, "non_finite", marks=pytest.mark.soak),
    ],
)
def test_a_run_that_ends_with_an_error_is_not_queued_again(
    world: Slurm, place: Path, field: tuple[str, str], code: int, outcome: str
) -> None:
    job = world.sbatch(place, *ONE, "slurm/train.sh", *RUN, *field)
    assert job.wait() == f"FAILED {code}:0", job.output()
    assert job.field("Restarts") == "0"
    assert job.result(f"runs/digits-{job.id}").exit["outcome"] == outcome


@pytest.mark.soak
def test_an_array_of_variants_makes_a_run_each_and_one_table(world: Slurm, place: Path) -> None:
    """The last member, whose number is that of the whole array, gets a stop request: it alone is queued again."""
    short, long = "--train.max-steps 2", "--train.epochs 12"
    lines = ["# seeds", f"digits --seed 1 {short}", f"digits --seed 2 {short}", "", "  # and heads",
             f"digits --seed 3 {short}", f'digits --seed 4 {long} --model.head "16 relu"']  # fmt: skip
    (place / "variants.txt").write_text("\n".join(lines) + "\n")
    common = [*METHOD.replace("--train.epochs 5", "").split(), "--data.limit", "40"]
    job = world.sbatch(place, "--array=1-4%2", *ONE, "slurm/sweep.sh", "variants.txt", *common)
    folder = place / "runs" / f"sweep-{job.id}"
    last = Job(world, f"{job.id}_4", place)
    last.steps(folder / "004", 3)
    assert (folder / "004" / "events.jsonl").read_text().count(f'"job": "{job.id}"') == 1
    world.call("scancel", "--batch", "--signal=USR1", last.id)
    job.until(lambda: not world.squeue(job.id, "%T"))
    assert [Job(world, f"{job.id}_{n}", place).field("Restarts") for n in range(1, 5)] == ["0", "0", "0", "1"]
    table = (folder / "table.md").read_text().splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert head[:5] == ["run", "seed", "model.head", "train.epochs", "outcome"]
    assert [row[:5] for row in rows] == [
        ["001", "1", "", "4", "done"], ["002", "2", "", "4", "done"], ["003", "3", "", "4", "done"],
        ["004", "4", "16 relu", "12", "done"],
    ]  # fmt: skip
    assert [row[head.index("attempts")] for row in rows] == ["1", "1", "1", "2"]
    again = world.sbatch(place, "--array=9", *ONE, "slurm/sweep.sh", "variants.txt")
    again.until(lambda: not world.squeue(again.id, "%T"))
    assert "variants.txt has 4 variants, there is no number 9" in again.output()


@pytest.mark.soak
def test_the_members_of_a_sweep_are_an_array(world: Slurm, place: Path) -> None:
    """Each in the directory that its line names, found again by the table; a second file has nothing left to run."""
    words = ["mlp-head/dropout", "--seeds", "1", "--out", "my ablation", "--data.path", "digits", *METHOD.split()]
    words += shlex.split("--model.backbone resnext14_8x8d --model.weights none --train.max-steps 2")
    verb = [sys.executable, "-c", "from cls.commands.main import main; main()", "sweep", *words, "--json", "--slurm"]

    def write(file: str) -> Any:
        env = environment(PYTHONPATH=str(ROOT))
        return json.loads(subprocess.run([*verb, file], cwd=place, env=env, capture_output=True, check=True).stdout)

    assert write("lines.txt")["sbatch"] == "CLS_SWEEP='my ablation' sbatch --array=1-2 slurm/sweep.sh lines.txt"
    job = world.sbatch(place, "--array=1-2", *ONE, "slurm/sweep.sh", "lines.txt", CLS_SWEEP="my ablation")
    job.until(lambda: not world.squeue(job.id, "%T"))
    document = write("more.txt")
    assert document["sbatch"] == "" and not (place / "more.txt").exists()
    assert [row["seeds"] for row in document["sweeps"][0]["rows"]] == [[0], [0]]
    assert "mlp-head-x50-dropout50-seed0" in (place / "my ablation" / "table.md").read_text()


def test_prediction_in_a_job(world: Slurm, place: Path, whole: Result, photos: Path) -> None:
    """A process for each GPU; their number decides no bit."""
    pictures = place / "some pictures"
    shutil.copytree(photos / "test", pictures)

    def files(gpus: tuple[str, ...], out: str) -> dict[str, bytes]:
        words = (whole.out.name, pictures.name, "--device", "cpu", "--out", out)
        job = world.sbatch(place, *gpus, "slurm/predict.sh", *words)
        assert job.wait() == "COMPLETED 0:0", job.output()
        assert (", by 2 processes" in job.output()) == (gpus is TWO)
        return {name: (place / out / name).read_bytes() for name in ("prediction.csv", "top.csv")}

    found = files(TWO, "by two")
    written = found["prediction.csv"].decode().splitlines()
    assert len(written) == 7 and written[0] == "image_name,pred_label"
    assert files(ONE, "by one") == found


DOCTOR = """#!/bin/bash
#SBATCH --output=doctor-%j.out
#SBATCH --nodes=2 --ntasks-per-node=2
scontrol show hostnames "$SLURM_JOB_NODELIST" >nodes.txt
srun PYTHON -m cls doctor --json --seconds 0.3 --out runs >doctor.json
"""


def test_the_doctor_on_two_nodes_tries_what_lies_between_them(world: Slurm, place: Path) -> None:
    """The environment names an interface that does not exist; the second task of each node has nothing to do."""
    here = place / "doctor"
    here.mkdir()
    (here / "doctor.sh").write_text(DOCTOR.replace("PYTHON", sys.executable))
    job = world.sbatch(here, "-p", "a6000", "doctor.sh", PYTHONPATH=str(ROOT), GLOO_SOCKET_IFNAME="nosuch0")
    assert job.wait() == "FAILED 2:0", job.output()
    names = (here / "nodes.txt").read_text().split()
    assert names == ["a6000-1", "a6000-2"] == list(hostnames("a6000-[1-2]"))
    found = {item["name"]: item for item in json.loads((here / "doctor.json").read_text())}
    assert {name.partition(":")[0] for name in found if ":" in name} == set(names)
    for name in names:
        assert f" of the machine's {os.cpu_count()}" in found[f"{name}: cores"]["found"]
        assert found[f"{name}: gloo on 2 processes with GLOO_SOCKET_IFNAME=lo"]["state"] == "ok"
    between = found["gloo between 2 nodes"]
    assert between["state"] == "bad" and between["remedy"] == "export GLOO_SOCKET_IFNAME=lo"
    assert re.match(r"a6000-[12]: rank [01] ended with status 1: .*nosuch0", between["found"])
    assert found["gloo between 2 nodes with GLOO_SOCKET_IFNAME=lo"]["found"].endswith(" GB/s")
    lines = job.output()
    assert lines.count("gloo between 2 nodes  ") == 1  # only the first task prints it
    assert lines.count("the first task of this node examines it") == 2


def test_data_is_staged_by_a_job(world: Slurm, place: Path, photos: Path) -> None:
    shutil.copytree(photos, place / "the photos")
    args = [*TINY, "--data.path", "the photos", "--out", "staged"]
    job = world.sbatch(place, *ONE, "slurm/train.sh", *args, CLS_STAGE="1", CLS_SCRATCH=str(place / "local"))
    assert job.wait() == "COMPLETED 0:0", job.output()
    (copy,) = (place / "local").glob("cls-*/*/the photos")
    data = from_yaml((place / "staged" / "config.yaml").read_text()).data
    assert (data.path, data.copy) == ("the photos", str(copy))


STAGE = 'CLS_OFFLINE=0 && . "$0/slurm/env.sh" && stage "$1"'


def test_staging_copies_once_whole_or_not_at_all(tmp_path: Path, photos: Path) -> None:
    source, scratch = tmp_path / "the photos", tmp_path / "local"
    shutil.copytree(photos, source)
    env = environment(CLS_SCRATCH=str(scratch), CLS_CACHE=str(tmp_path / "caches"))

    def stage(what: Path) -> subprocess.Popen[str]:
        command = ["bash", "-euo", "pipefail", "-c", STAGE, str(ROOT), str(what)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    both = [run.communicate() for run in [stage(source), stage(source), stage(source)]]
    assert len({out for out, _ in both}) == 1 and sum("copying" in err for _, err in both) == 1
    copy = Path(both[0][0].strip())
    assert copy.is_relative_to(scratch) and copy.name == "the photos"
    contents = {path.relative_to(source): path.read_bytes() for path in source.rglob("*.jpg")}
    assert {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*.jpg")} == contents and len(
        contents
    ) == 72
    (source / "train" / "0" / "0-0.jpg").write_bytes(b"another picture")  # deep inside: the folder itself is as old
    (source / "val" / "1" / "link.jpg").symlink_to(source / "val" / "0" / "0-0.jpg")
    other = Path(stage(source).communicate()[0].strip())
    assert other != copy and (other / "train" / "0" / "0-0.jpg").read_bytes() == b"another picture"
    linked = other / "val" / "1" / "link.jpg"
    assert not linked.is_symlink() and linked.read_bytes() == contents[Path("val/0/0-0.jpg")]
    (tmp_path / "one.parquet").write_bytes(b"x" * 100_000)
    assert Path(stage(tmp_path / "one.parquet").communicate()[0].strip()).read_bytes() == b"x" * 100_000
    env["CLS_SCRATCH"] = "/proc/none"
    refused = stage(source)
    refused.communicate()
    assert refused.returncode != 0


def printed_lines() -> list[str]:
    """Each sbatch command shown on the pages or at the head of a script."""
    found = []
    for path in (ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "slurm").glob("*.sh"))):
        for line in path.read_text().splitlines():
            if match := re.search(r"(?:^|`|#\s+|^\s*)(sbatch (?:-|slurm/)[^`#]*)", line):
                found.append(match[1].strip().replace("PARTITION", "rtx3090"))
    return sorted(set(found))


REQUESTS = [
    PlanOptions(gpu="a6000"),
    PlanOptions(gpu="rtx3090", gpus=4, nodes=2, time="12:00:00", script="slurm/rtx3090.sh", cpus=16),
    PlanOptions(gpu="a6000", gpus=2, script="slurm/a6000.sh"),
]


def test_slurm_accepts_every_printed_line(world: Slurm, place: Path) -> None:
    lines = [*printed_lines(), *(command(recipes.get("mlp-head"), request, 8) for request in REQUESTS)]
    scripts = [Path(next(word for word in shlex.split(line) if word.startswith("slurm/"))).name for line in lines]
    assert set(scripts) == {"train.sh", "a6000.sh", "rtx3090.sh", "sweep.sh", "predict.sh"} and len(lines) >= 8
    for line in lines:
        done = world.call("sbatch", "--test-only", *shlex.split(line)[1:], cwd=world.checkout)
        assert done.returncode == 0, f"{line}: {done.stderr}"


@pytest.mark.parametrize(
    "text",
    ["#SBATCH --time=1\n", "#!/bin/bash\r\n#SBATCH --time=1\r\n"]
    + [f"#!/bin/bash\n#SBATCH {line}\n" for line in (
        "output", "--zzz=1", "--cpu-per-task=2", "--open_mode=append", "--comment=it's", "--signal=B:USR1@2m",
        "--time=24h", "--mem=all", "--cpus-per-task=all", "-N")],
)  # fmt: skip
def test_sbatch_rejects_what_a_plan_leaves_to_it(world: Slurm, text: str, tmp_path: Path) -> None:
    """cls/commands/plan/sbatch.py has no rules for these: a mistake there gives no job, but a message."""
    (tmp_path / "job.sh").write_bytes(text.encode() + b"true\n")
    done = world.call("sbatch", "--test-only", str(tmp_path / "job.sh"))
    assert done.returncode != 0 and "to start at" not in done.stderr and done.stderr.strip()


@pytest.mark.soak
def test_every_printed_line_runs_to_its_end(world: Slurm, place: Path, whole: Result, photos: Path) -> None:
    """As it stands, followed by fields that make it small; runs/mlp-head-42 and photos are there."""
    small = ["--model.weights", "none", "--model.backbone", "resnext14_8x8d", "--data.size", "32", "--train.batch", "8",
             "--train.micro-batch", "2", "--train.max-steps", "1", "--train.device", "cpu", "--data.workers", "0",
             "--model.head", ""]  # fmt: skip
    for number, line in enumerate(printed_lines()):
        here = world.checkout.parent / f"here {number}"
        shutil.copytree(photos, here / "photos")
        (here / "variants.txt").write_text("mlp-head\n" * 4)
        (here / "slurm").symlink_to(world.checkout / "slurm")
        words = shlex.split(line)[1:]
        if "slurm/predict.sh" in words:
            shutil.copytree(whole.out, here / "runs" / "mlp-head-42")
            words += ["--device", "cpu"]
        else:
            words += small if "digits" not in words else [*METHOD.split(), "--train.max-steps", "1"]
        job = world.sbatch(here, *(w.replace("slurm/", str(world.checkout / "slurm") + "/") for w in words),
                             CLS_PROCESSES="1")  # fmt: skip
        job.until(lambda job=job: not world.squeue(job.id, "%T"))
        assert job.field("JobState") == "COMPLETED", f"{line}: {job.output()}"


def test_the_scripts_are_clean() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    done = subprocess.run(["shellcheck", "-x", *sorted((ROOT / "slurm").glob("*.sh"))], capture_output=True, text=True,
                          cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stdout
