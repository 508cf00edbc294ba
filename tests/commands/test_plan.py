"""The plan of a real data set, and requests that are rejected."""

import json
import re
import shlex
import subprocess
from dataclasses import asdict, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from cls import recipes
from cls.commands.gpus import GPUS, Gpu, find
from cls.commands.options import PlanOptions
from cls.commands.parsing import parse_run
from cls.commands.plan import roofline
from cls.commands.plan.memory import Step, Tape, trace_step
from cls.commands.plan.render import ROWS, table
from cls.commands.plan.run import command, plan
from cls.commands.plan.sbatch import CHECKPOINT_SECONDS, STARTUP_SECONDS, one_job
from cls.config import Run, change, flat
from cls.data.sources import load
from tests.harness import ROOT

# --- GPUs ---


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtx3090", "RTX 3090"), ("3090", "RTX 3090"), ("RTX 3090", "RTX 3090"), ("a6000", "RTX A6000"),
        ("NVIDIA RTX A6000", "RTX A6000"), ("GeForce RTX 3060 Ti", "RTX 3060 Ti"), ("3060ti", "RTX 3060 Ti"),
        ("rtx-2070", "RTX 2070"), ("a100", "A100 40GB"), ("A100-80GB", "A100 80GB"), ("a100-80g", "A100 80GB"),
        ("a100_40", "A100 40GB"), ("H100", "H100 80GB"), ("h100-80gb", "H100 80GB"),
    ],
)  # fmt: skip
def test_gpus_are_found_by_loose_names(text: str, name: str) -> None:
    assert find(text).name == name


@pytest.mark.parametrize(("text", "near"), [("rtx3091", "RTX 3090"), ("a600", "RTX A6000"), ("h10", "H100 80GB")])
def test_an_unknown_gpu_is_rejected_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"gpu: unknown GPU '{text}'; did you mean '{near}'\?.* --memory GB"):
        find(text)


def test_each_gpu_is_found_by_its_own_names() -> None:
    for gpu in GPUS:
        assert find(gpu.name) == gpu
        assert find(gpu.slurm).memory_gib <= gpu.memory_gib


# --- time ---


def flat_step(flops: list[int], moved: list[int], update: int) -> Step:
    """A trace with the given operations, which do not depend on the micro-batch; one 8 MB set of gradients."""
    tape = Tape(bytes=[8_000_000, -8_000_000], part=[2, 2], flops=flops, moved=moved, update=update)
    return Step(recipes.get("digits"), (tape, tape), True)


GPU = Gpu("test", "test", 8, bf16_tflops=100.0, fp32_tflops=10.0, bandwidth_gb_per_s=100.0)


END = roofline.End(efficiency=0.5, launch_seconds=1e-5, pcie_gb_per_s=10.0)


def test_the_roofline_by_hand() -> None:
    """10^12 FLOPs at 10 TFLOP/s: .1 s; 4·10^10 bytes at 100 GB/s: .4 s; nothing: 10 us; all at half the speed."""
    step = flat_step([10**12, 10**12, 0, 0], [4, 4 * 10**10, 4, 10**10], 3)
    assert roofline.roofline(step, 8, GPU, "fp32", END) == pytest.approx(0.2 + 0.8 + 1e-5)
    assert roofline.roofline(step, 8, GPU, "bf16", END) == pytest.approx(0.02 + 0.8 + 1e-5)
    assert roofline.roofline(step, 8, GPU, "fp32", END._replace(efficiency=1.0)) == pytest.approx(0.1 + 0.4 + 1e-5)
    assert step.update_bytes() == 10**10
    run = change(recipes.get("digits"), train={"batch": 28, "micro_batch": 4})
    one = roofline.estimate(step, run, GPU, "fp32", 1, 1, 10.0, False, END)
    assert one.step == pytest.approx(7 * 1.00001 + 0.2) and one.exchange == 0
    three = roofline.estimate(step, run, GPU, "fp32", 3, 1, 10.0, False, END)
    assert three.compute == pytest.approx(3 * 1.00001 + 0.2)  # 3 + 2 + 2
    assert three.exchange == pytest.approx(three.exchange_bytes / 10e9)
    apart = roofline.estimate(step, change(run, train={"reduce": "fast"}), GPU, "fp32", 1, 3, 8.0, False, END)
    assert apart.exchange == pytest.approx(apart.exchange_bytes / 1e9)  # 8 Gbit/s


# Training images/s of one RTX 3090 in timm's results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv: batch, figure.
INTEGRATION = pytest.mark.integration
PUBLISHED = [
    ("resnet50", 512, 1218.0),
    pytest.param("resnext101_32x8d", 128, 312.8, marks=INTEGRATION),
    pytest.param("resnext101_64x4d", 128, 363.8, marks=INTEGRATION),
    pytest.param("resnet18", 512, 3481.8, marks=INTEGRATION),
    pytest.param("resnet101", 256, 747.9, marks=INTEGRATION),
    pytest.param("resnext50_32x4d", 384, 1001.0, marks=INTEGRATION),
    pytest.param("wide_resnet50_2", 384, 668.8, marks=INTEGRATION),
    pytest.param("timm/seresnext101_32x8d", 128, 278.1, marks=INTEGRATION),
]


@pytest.mark.parametrize(("backbone", "batch", "measured"), PUBLISHED)
def test_published_throughput_lies_between_the_two_ends(backbone: str, batch: int, measured: float) -> None:
    model = {"weights": "none", "backbone": backbone, "head": ""}
    run = change(recipes.get("mlp-head"), model=model, train={"batch": batch, "micro_batch": batch, "reduce": "fast"})
    step, card = trace_step(run, 1000, "bf16"), find("3090")
    slower, faster = (
        batch / roofline.estimate(step, run, card, "bf16", 1, 1, 10.0, False, end).step
        for end in (roofline.SLOWER, roofline.FASTER)
    )
    assert slower < measured < faster, f"{slower:.0f} to {faster:.0f}"


def test_exchanged_bytes_by_hand() -> None:
    """4 micro-batches on 2 ranks: one sum each. 7 on 2: ranks hold 4 = one sum and 2 + 1 = two."""
    assert roofline.exchange_bytes(1000, 4, 1, exact=True, fsdp=False) == 0
    assert roofline.exchange_bytes(1000, 4, 2, exact=False, fsdp=False) == 1000
    assert roofline.exchange_bytes(1000, 4, 2, exact=True, fsdp=False) == 1000
    assert roofline.exchange_bytes(1000, 7, 2, exact=True, fsdp=False) == 1500
    assert roofline.exchange_bytes(1000, 4, 4, exact=True, fsdp=False) == 1500
    assert roofline.exchange_bytes(1000, 4, 2, exact=False, fsdp=True) == 3000


@pytest.mark.parametrize(("rate", "per_core", "cores"), [(99.0, 100.0, 2), (100.0, 100.0, 2), (101.0, 100.0, 3)])
def test_cores_are_rounded_up_and_one_is_for_the_main_process(rate: float, per_core: float, cores: int) -> None:
    assert roofline.cores_needed(rate, per_core) == cores


def test_the_pipeline_is_timed_on_the_users_own_images(photos: Path) -> None:
    """A large picture takes longer: the same run at 16 and at 512 pixels."""
    run = change(recipes.get("mlp-head"), data={"path": str(photos), "size": 16}, model={"weights": "none"})
    splits = load(run.data, 0)
    small = roofline.images_per_second_per_core(run, splits, 50)
    large = roofline.images_per_second_per_core(change(run, data={"size": 512}), splits, 50)
    assert small > 2 * large > 0


# --- the whole plan ---


def digits(**sections: dict[str, Any]) -> Run:
    return change(recipes.get("digits"), **sections)


@cache
def planned() -> dict[str, Any]:
    return plan(digits(), PlanOptions(gpu="3090", gpus=3, time="10"))


def test_the_plan_of_the_digits() -> None:
    """1438 training images in 10 classes; batch 128 in 8 micro-batches on 3 GPUs: 3 + 3 + 2."""
    found = planned()
    assert found["classes"] == 10 and found["training_images"] == 1438
    assert found["precision"] == "bf16" and found["fits"] and found["problems"] == []
    assert found["micro_batches_per_gpu"] == [3, 3, 2]
    assert any("reduce fast puts several into one" in text for text in found["assumptions"])
    assert found["largest_micro_batch"] == 32  # 4 micro-batches; of 64 there would be 2 for 3 GPUs
    assert list(found["memory_by_micro_batch_gib"]) == ["2", "4", "8", "16", "32"]
    in_all = sum(found["memory_gib"].values())
    assert found["memory_by_micro_batch_gib"]["16"] == pytest.approx(in_all, abs=0.01)
    assert found["usable_memory_gib"] == pytest.approx(0.94 * 24)
    assert found["sharding"].startswith("DDP is right: on 3 GPUs")
    epoch = found["epoch_seconds"]
    assert epoch == pytest.approx(1438 / 128 * found["step_seconds"], rel=0.1)
    assert found["whole_run_hours"] * 3600 == pytest.approx(4 * epoch, rel=0.05)
    assert found["requeues"] == 0
    for name in ("step_seconds", "exchange_seconds", "epoch_seconds", "whole_run_hours"):
        assert 0 < found[f"fastest_{name}"] < found[name], name
    assert found["fastest_images_per_second"] == pytest.approx(128 / found["fastest_step_seconds"])
    assert found["images_per_second"] == pytest.approx(128 / found["step_seconds"])
    busy = found["fastest_images_per_second"] / found["images_per_second_per_core"]
    assert found["cores_per_node"] == pytest.approx(3 * (busy / 3 + 1.5), abs=3 * 0.6)  # each GPU's process has its own
    cores = found["cores_per_node"]
    line = f"sbatch --nodes=1 --gpus-per-node=3 --time=10 --cpus-per-task={cores} slurm/train.sh digits"
    assert found["sbatch"] == line
    json.dumps(found)  # is a document


def test_the_plan_is_printed_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    table(planned())
    printed = capsys.readouterr()
    assert printed.out == ""
    for part in ("activations", "usable on RTX 3090", "assumed:", "3 + 3 + 2", planned()["sbatch"] + "\n"):
        assert part in printed.err, part
    slower, faster = (f"{planned()[f'{name}images_per_second']:,.0f}" for name in ("", "fastest_"))
    assert re.search(rf"images per second  +{re.escape(f'{slower} to {faster}')}\s", printed.err)
    assert "fastest" not in printed.err and not re.search(r"[a-z]_[a-z]", printed.err.partition("assumed:")[0])
    apart = ("memory_gib", "usable_memory_gib", "assumptions", "problems", "sbatch")
    assert {name for name in planned() if not name.startswith("fastest_")} == {*ROWS, *apart}


@pytest.mark.parametrize(
    ("hours", "text"), [(0.0, "0:30:00"), (0.43, "0:30:00"), (0.44, "1:00:00"), (6.2, "6:30:00"), (23.9, "24:00:00"),
                        (24.0, "1-00:30:00"), (100.0, "4-04:30:00")]
)  # fmt: skip
def test_the_time_of_one_job_is_the_run_with_its_start_and_last_checkpoint(hours: float, text: str) -> None:
    """4 minutes more, in half hours."""
    assert one_job(hours * 3600) == (text if text != "24:00:00" else "1-00:00:00")


def test_a_micro_batch_that_does_not_fit_gets_the_largest_that_does() -> None:
    """On a card of 1.6 GB: with context and workspace little is left."""
    run = digits(data={"size": 256}, train={"micro_batch": 128})
    found = plan(run, PlanOptions(memory=1.6))
    best = found["largest_micro_batch"]
    by_size = {int(size): need for size, need in found["memory_by_micro_batch_gib"].items()}
    usable = 0.94 * 1.6
    assert not found["fits"] and 2 <= best < 128
    assert by_size[best] <= usable + 0.01 and by_size[2 * best] > usable - 0.01
    assert best not in (16, 128) and found["estimated_for_micro_batch"] == best
    assert f"add --train.micro-batch {best} " in found["problems"][0]
    assert f"--train.micro-batch {best}" in found["sbatch"]
    assert "step_seconds" not in found and "cores_per_node" not in found  # no estimate for an unknown card
    assert found["precision"] == "fp32" and found["gpu"] == "1.6 GB"


def test_a_network_that_does_not_fit_at_all() -> None:
    found = plan(digits(), PlanOptions(memory=1.0))
    assert found["largest_micro_batch"] == 0 and not found["fits"]
    assert found["problems"][0].endswith("use a smaller --data.size or --model.backbone")


def test_a_script_is_compared_with_the_plan(tmp_path: Path) -> None:
    script = tmp_path / "my job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --gpus-per-node=a6000:1\n#SBATCH --cpus-per-task=2\n#SBATCH --time=10\n"
        "#SBATCH --requeue\n#SBATCH --open-mode=append\n#SBATCH --signal=USR1@120\n#SBATCH --mem=4G\ntrue\n"
    )
    found = plan(digits(), PlanOptions(gpu="3090", gpus=2, cpus=1, script=str(script)))
    places = [text.split(": ")[:2] for text in found["problems"]]
    assert places == [
        ["cpus", places[0][1]],
        [f"{script}:3", "cores"], [f"{script}:2", "gpus"], [f"{script}:2", "gpus"], [f"{script}:8", "memory"],
    ]  # fmt: skip
    assert "--gpus-per-node=rtx3090:2" in found["problems"][2]
    assert f"--cpus-per-task=1 {shlex.quote(str(script))} digits" in found["sbatch"]


def test_a_time_limit_means_requeues() -> None:
    """100 epochs more than fit into the least limit: the number follows from the plan's own figures, its slower end."""
    run = digits(train={"epochs": 100_000})
    found = plan(run, PlanOptions(gpu="2070", time="30"))
    usable = 1800 - STARTUP_SECONDS - CHECKPOINT_SECONDS
    assert found["requeues"] == ceil(found["whole_run_hours"] * 3600 / usable) - 1 > 0
    assert found["precision"] == "fp32"  # before Ampere


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown GPU": ({}, {"gpu": "rtx3091"}, "did you mean 'RTX 3090'"),
    "no GPU": ({}, {}, "gpu: name it"),
    "GPU and memory": ({}, {"gpu": "3090", "memory": 8.0}, "gpu: name it"),
    "negative memory": ({}, {"memory": -8.0}, "memory is -8.0"),
    "no GPUs": ({}, {"gpu": "3090", "gpus": 0}, "gpus is 0: give 1 or more"),
    "no nodes": ({}, {"gpu": "3090", "nodes": -1}, "nodes is -1: give 1 or more"),
    "no link": ({}, {"gpu": "3090", "link": 0.0}, "link is 0.0"),
    "more GPUs than micro-batches": ({}, {"gpu": "3090", "gpus": 9}, "plan for 8 GPUs in all, or --train.batch 144"),
    "sharding one GPU": ({"train": {"reduce": "fast"}}, {"gpu": "3090", "fsdp": True}, "fsdp: there is one GPU"),
    "sharding exactly": ({}, {"gpu": "3090", "gpus": 2, "fsdp": True}, "add --train.reduce fast"),
    "sharding unevenly": (
        {"train": {"reduce": "fast"}}, {"gpu": "3090", "gpus": 3, "fsdp": True}, "a number of GPUs that divides 8"
    ),
    "bf16 before Ampere": ({"train": {"precision": "bf16"}}, {"gpu": "2070"}, "use --train.precision fp32"),
    "batch not divisible": ({"train": {"micro_batch": 24}}, {"gpu": "3090"}, "use --train.micro-batch 16"),
    "one image": ({"train": {"micro_batch": 1}}, {"gpu": "3090"}, "statistics of 2 or more images"),
    "no data named": ({"data": {"path": ""}}, {"gpu": "3090"}, "data.path is empty"),
    "data missing": ({"data": {"path": "/nowhere/photos"}}, {"gpu": "3090"}, "/nowhere/photos"),
    "batch larger than the data": ({"data": {"limit": 60}}, {"gpu": "3090"}, "only 60 training images"),
    "unknown time": ({}, {"gpu": "3090", "time": "1h"}, "time: '1h' is not a SLURM time"),
    "time too short": ({}, {"gpu": "3090", "time": "2"}, "time is 2, shorter than start-up and one epoch: give 5 or"),
    "script missing": ({}, {"gpu": "3090", "script": "nowhere.sh"}, "script: nowhere.sh: no such file"),
    "unknown backbone": ({"model": {"backbone": "resnet51"}}, {"gpu": "3090"}, "did you mean resnet"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_planned_is_one_clear_message(name: str) -> None:
    sections, request, part = BAD[name]
    with pytest.raises(ValueError) as error:
        plan(digits(**sections), PlanOptions(**request))
    assert part in str(error.value) and "\n" not in str(error.value)


# --- the line to submit ---


def test_the_line_of_a_sharded_run_names_its_launcher_configuration() -> None:
    run = change(Run(), train={"reduce": "fast"})
    line = command(run, PlanOptions(gpu="3090", gpus=2, fsdp=True), 8)
    assert line.startswith("CLS_ACCELERATE=fsdp sbatch ")
    assert (ROOT / "accelerate_configs" / "fsdp.yaml").is_file()


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"data": {"path": "/my data/it's here", "workers": -1, "limit": 7}},
        {"data": {"path": "-dash"}},
        {
            "augment": {
                "zoom": (0.9, 1.1),
                "tta": ("identity", "hflip"),
                "order": ("frame", "hflip", "affine", "rotate", "jitter"),
            }
        },
        {"model": {"freeze": ("stem", "layer1"), "weights": "none", "head": "500 relu dropout:0.5"}},
        {"augment": {"tta": ()}, "optim": {"lr": 1e-5, "betas": (0.8, 0.99), "decay_norms": False}},
        {"train": {"micro_batch": 8, "reduce": "fast", "compile": True}, "track": {"name": "$HOME `x`"}},
    ],
)
@pytest.mark.parametrize("recipe", ["mlp-head", "digits"])
def test_the_line_gives_the_same_run_again(recipe: str, sections: dict[str, dict[str, Any]]) -> None:
    """Read by a real shell and by the real command line; and it names nothing but what differs."""
    run = replace(change(recipes.get(recipe), **sections), out="runs/a b")
    if not run.data.path:
        run = change(run, data={"path": "photos"})
    script = str(ROOT / "slurm" / "a6000.sh")
    line = command(run, PlanOptions(gpu="a6000", gpus=2, nodes=3, time="1-00", script=script), 8)
    printed = subprocess.run(
        ["bash", "-c", line.replace("sbatch", "printf '%s\\0'", 1)], capture_output=True, text=True
    )
    words = printed.stdout.rstrip("\0").split("\0")
    assert words[:5] == ["--nodes=3", "--gpus-per-node=a6000:2", "--time=1-00", "--cpus-per-task=8", script]
    assert asdict(parse_run(words[5:])) == asdict(run)
    usual = flat(recipes.get(recipe))
    named = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in words[6:] if word.startswith("--")}
    assert named == {name for name, value in flat(run).items() if value != usual[name]}
