"""Sharded training (FSDP 2) on real gloo processes: DDP's numbers, half its memory, the same files, and resuming."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from cls.commands.audit import audit
from cls.tracking.events import read_events
from cls.training.checkpoint import checkpoints, verify
from tests.harness import ROOT, SMALL, environment
from tests.harness.records import Result, images
from tests.harness.runs import Runs, free_port
from tests.harness.sharding import RECORD, Tensors, gathered, records, sha

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what accelerate_configs/fsdp.yaml makes of the launcher
METHOD = """
--train.reduce fast --optim.clip 0.5 --optim.ema 0.9 --optim.label-smoothing 0.1 --augment.mixup 0.4 --optim.head-lr 5
--optim.lr 1e-3 --train.keep 1 --track.ledger True
"""
COMMON = [*SMALL, *METHOD.split()]  # 100 images, 4 micro-batches of 8
NORMED = [*COMMON, "--model.backbone", "timm/test_efficientnet_gn", "--train.channels-last", "False"]
STEPS = 20
WHOLE = [*NORMED, "--train.max-steps", str(STEPS)]
RESNEXT = "resnext14_8x8d"
FROZEN = ("stem", "layer1", "layer2", "layer3")


@dataclass(frozen=True)
class Attempt:
    """One command's run, and what its ranks held."""

    ended: Result
    ranks: list[dict[str, Any]]
    start: Tensors
    last: Tensors
    ema: Tensors

    @property
    def out(self) -> Path:
        return self.ended.out

    def figures(self, key: str) -> list[float]:
        return [row[key] for row in self.ended.rows if key in row]

    def part(self, name: str) -> Tensors:
        return {k.removeprefix(f"{name}."): v for k, v in self.last.items() if k.startswith(f"{name}.")}


Go = Callable[..., Attempt]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def go(runs: Runs, folder: Path) -> Go:
    """A run on (mostly) two ranks that must end well, or as ``fault`` asks; every rank says how it holds the model."""

    def on_ranks(name: str, args: list[str], fsdp: bool, fault: str = "", world: int = 2) -> Attempt:
        ended = runs.run(folder / name, args, world, fault, RECORD, **(FSDP if fsdp else {}))
        assert ended.codes == [85 if fault else 0] * world, ended.output
        assert "Traceback" not in ended.output
        ranks = records(ended)
        assert [(r["rank"], r["world"], r["fsdp"]) for r in ranks] == [(rank, world, fsdp) for rank in range(world)]
        assert len({r["pid"] for r in ranks}) == world
        for rank in ranks:
            assert len(rank["networks"]) == 2  # the model and its average
            for network in rank["networks"]:
                assert network["groups"] > 1 if fsdp else network["groups"] == 0
                assert network["sharded"] == (network["parameters"] if fsdp else 0) and network["parameters"] > 10
        start = read_events(ended.out)
        assert [(e["processes"], e["sharded"]) for e in start if e["event"] == "start"][-1] == (world, fsdp)
        return Attempt(ended, ranks, *(gathered(ended, when) for when in ("start", "last", "ema")))

    return on_ranks


def equal(ours: Tensors, theirs: Tensors) -> bool:
    assert sorted(ours) == sorted(theirs)
    return all(ours[k].dtype == theirs[k].dtype and ours[k].equal(theirs[k]) for k in ours)


def newest(out: Path) -> Path:
    path = checkpoints(out / "checkpoints")[-1]
    assert verify(path) == ""
    return path


def same_figures(ours: Attempt, theirs: Attempt, rel: float) -> None:
    for key in ("train/loss", "val/loss"):
        assert ours.figures(key) == pytest.approx(theirs.figures(key), rel=rel)
    assert ours.figures("train/lr") == theirs.figures("train/lr")
    steps = [[row["step"] for row in attempt.ended.rows] for attempt in (ours, theirs)]
    assert steps[0] == steps[1]


# --- the same training ---


@pytest.fixture(scope="module")
def ddp(go: Go) -> Attempt:
    """GroupNorm, so that DDP and FSDP differ in nothing but the order of sums."""
    return go("ddp", WHOLE, False)


@pytest.fixture(scope="module")
def fsdp(go: Go) -> Attempt:
    return go("fsdp", WHOLE, True)


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    """A network of timm's own making whose statistics are not those of a fresh one."""
    generator = torch.Generator().manual_seed(3)
    network = timm.create_model("test_resnet", num_classes=10)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif not name.endswith("running_var"):
            value.copy_(torch.randn(value.shape, generator=generator) * value.std().clamp(min=0.01))
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.fixture(scope="module")
def frozen(go: Go, weights: Path) -> dict[bool, Attempt]:
    """Four stages at their pretrained values, and BatchNorm that learns in the last one; by sharded or not."""
    args = [*COMMON, "--model.backbone", "timm/test_resnet", "--model.weights", str(weights), "--train.max-steps", "8"]
    return {sharded: go(f"frozen-{sharded}", [*args, "--model.freeze", *FROZEN], sharded) for sharded in (False, True)}


@pytest.mark.integration
def test_twenty_steps_have_the_losses_of_ddp(ddp: Attempt, fsdp: Attempt) -> None:
    """Clipping, moving average, label smoothing, mixup and the head's own rate included."""
    assert len(fsdp.figures("train/loss")) == STEPS and len(fsdp.figures("val/loss")) == 7
    same_figures(fsdp, ddp, 1e-5)
    assert images(fsdp.out) == images(ddp.out) and len(images(fsdp.out)) == STEPS * 32
    assert ddp.figures("train/loss")[-1] < 0.8 * ddp.figures("train/loss")[0]  # they have moved
    for name, value in fsdp.part("model").items():
        assert torch.allclose(value, ddp.part("model")[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.integration
def test_rank_0_draws_the_heat_maps_of_sharded_weights_alone(fsdp: Attempt) -> None:
    page = (fsdp.out / "report.html").read_text()
    assert "Heat maps (Grad-CAM)" in page and page.count('class="maps"') == min(24, page.count('class="photo"')) > 0


@pytest.mark.soak
def test_a_frozen_network_has_the_losses_of_ddp(frozen: dict[bool, Attempt]) -> None:
    assert len(frozen[True].figures("train/loss")) == 8
    same_figures(frozen[True], frozen[False], 1e-5)


@pytest.mark.soak
def test_statistics_of_frozen_norms_may_move_in_shards(go: Go, weights: Path, frozen: dict[bool, Attempt]) -> None:
    args = [*COMMON, "--model.backbone", "timm/test_resnet", "--model.weights", str(weights), "--train.max-steps", "8"]
    args += ["--model.freeze", *FROZEN, "--model.freeze-norms", "False"]
    ours, theirs = go("moving-fsdp", args, True), go("moving-ddp", args, False)
    same_figures(ours, theirs, 1e-5)
    name = "layer1.0.bn1.running_mean"
    assert torch.allclose(ours.part("model")[name], theirs.part("model")[name], rtol=1e-5)
    assert not torch.allclose(ours.part("model")[name], frozen[True].part("model")[name], rtol=1e-3)


@pytest.mark.soak
def test_bf16_has_the_first_losses_of_ddp(go: Go, ddp: Attempt) -> None:
    args = [*NORMED, "--train.precision", "bf16", "--train.max-steps", "3"]
    ours, theirs = go("bf16-fsdp", args, True), go("bf16-ddp", args, False)
    assert len(ours.figures("train/loss")) == 3
    same_figures(ours, theirs, 2e-2)
    for attempt in (ours, theirs):  # it is another arithmetic than fp32
        assert attempt.figures("train/loss") != ddp.figures("train/loss")[:3]
        assert all(v.dtype == torch.float32 for k, v in attempt.last.items() if v.is_floating_point())


# --- memory ---


@pytest.fixture(scope="module")
def large(go: Go) -> dict[bool, Attempt]:
    """The ResNeXt of the digits recipe, 5.3 million parameters."""
    args = [*COMMON, "--train.max-steps", "2"]
    return {sharded: go(f"large-{sharded}", args, sharded) for sharded in (False, True)}


@pytest.mark.integration
def test_a_rank_holds_half_of_everything(large: dict[bool, Attempt]) -> None:
    weights = sum(p.numel() * 4 for p in architecture(RESNEXT).parameters())
    for sharded, attempt in large.items():
        for rank in attempt.ranks:
            held = rank["bytes"]
            if not sharded:
                assert held == {"parameters": weights, "gradients": weights, "moments": 2 * weights}
            for name, whole in large[False].ranks[0]["bytes"].items():
                assert not sharded or held[name] <= 0.52 * whole, name
    for rank in large[True].ranks:  # all tensors that Python can see between two steps, the moving average included
        assert 2.5 * weights <= rank["alive"] <= 0.52 * large[False].ranks[0]["alive"]
    both = [sum(rank["bytes"][name] for rank in large[True].ranks) for name in ("parameters", "gradients", "moments")]
    assert all(have >= need for have, need in zip(both, (weights, weights, 2 * weights), strict=True))


@pytest.mark.integration
@pytest.mark.parametrize("which", ["fsdp", "large", pytest.param("frozen", marks=pytest.mark.soak)])
def test_two_groups_at_most_are_whole_at_once(which: str, request: pytest.FixtureRequest) -> None:
    """The root's own and one block's; after a step, an evaluation and the last prediction none."""
    found = request.getfixturevalue(which)
    attempt = found if which == "fsdp" else found[True]
    for rank in attempt.ranks:
        assert rank["most_gathered"] == {"train": 2, "eval": 2, "backward": 2}
        assert rank["networks"][0]["groups"] == rank["networks"][1]["groups"] >= 6
        assert rank["layers_seen"] > 100
        assert rank["left_gathered"] == 0
        assert rank["looks"] == rank["steps"] + len(attempt.figures("val/loss")) + 1
        assert rank["steps"] == len(attempt.figures("train/loss")) > 1


# --- resuming ---


@pytest.fixture(scope="module")
def chain(go: Go) -> list[Attempt]:
    """DDP, FSDP, DDP, each of the first two stopped inside an epoch by a signal to one rank."""
    return [
        go("chain", WHOLE, False, "SIGTERM@1:step:5"),
        go("chain", WHOLE, True, "SIGUSR1@0:step:5"),
        go("chain", WHOLE, False),
    ]


@pytest.fixture(scope="module")
def halves(go: Go) -> list[Attempt]:
    """FSDP twice; a copy of the run directory between the two is kept as ``halfway``."""
    first = go("halves", WHOLE, True, "SIGTERM@0:step:8")
    shutil.copytree(first.out, first.out.with_name("halfway"))
    return [first, go("halves", WHOLE, True)]


@pytest.mark.integration
def test_a_run_resumes_from_ddp_to_fsdp_and_back(chain: list[Attempt], ddp: Attempt) -> None:
    starts = [event for event in read_events(chain[-1].out) if event["event"] == "start"]
    assert [(e["step"], e["processes"], e["sharded"]) for e in starts] == [(0, 2, False), (6, 2, True), (12, 2, False)]
    assert [attempt.ranks[0]["steps"] for attempt in chain] == [6, 6, 8]
    same_figures(chain[-1], ddp, 1e-5)
    assert images(chain[-1].out) == images(ddp.out)
    found = audit(chain[-1].out, 100, 32, balanced=False)
    assert found["problems"] == [] and found["ledger"] and len(found["attempts"]) == 3


@pytest.mark.integration
def test_everything_is_restored_bit_for_bit(chain: list[Attempt], halves: list[Attempt]) -> None:
    """Weights, buffers, moving average, moments: what an attempt starts with is what the one before ended with."""
    for before, after in (chain[:2], chain[1:], halves):
        assert equal(after.start, before.last)
        kinds = {name.split(".")[0] for name in after.start}
        assert kinds == {"model", "average", "optimizer"}
        moments = [v for k, v in after.start.items() if k.endswith((".exp_avg", ".exp_avg_sq"))]
        assert len(moments) == 2 * before.ranks[0]["networks"][0]["parameters"] and all(m.any() for m in moments)
        assert not equal(after.last, after.start)


def check_same_bits(halves: list[Attempt], whole: Attempt, steps: list[int]) -> None:
    assert [attempt.ranks[0]["steps"] for attempt in halves] == steps
    assert equal(halves[-1].last, whole.last)
    same_figures(halves[-1], whole, 0)
    assert [rank["weights"] for rank in halves[-1].ranks] == [rank["weights"] for rank in whole.ranks]
    ours, theirs = newest(halves[-1].out), newest(whole.out)
    for name in ("model.safetensors", "average.safetensors", "optimizer.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.integration
def test_fsdp_after_fsdp_is_the_uninterrupted_run_bit_for_bit(halves: list[Attempt], fsdp: Attempt) -> None:
    check_same_bits(halves, fsdp, [9, 11])


@pytest.mark.promise
@pytest.mark.integration
def test_a_short_fsdp_run_resumes_bit_for_bit(go: Go) -> None:
    short = [*NORMED, "--train.max-steps", "6"]
    halves = [go("short-halves", short, True, "SIGTERM@0:step:3"), go("short-halves", short, True)]
    check_same_bits(halves, go("short", short, True), [4, 2])


@pytest.mark.soak
def test_control_without_the_moments_the_losses_differ(go: Go, halves: list[Attempt], fsdp: Attempt) -> None:
    path = newest(halves[0].out.with_name("halfway"))
    (path / "optimizer.safetensors").unlink()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["sha256"]["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    attempt = go("halfway", [*NORMED, "--train.max-steps", "12"], True)
    ours, theirs = attempt.figures("train/loss")[:12], fsdp.figures("train/loss")[:12]
    assert ours[:10] == theirs[:10]  # the weights were there
    assert all(abs(a / b - 1) > 1e-4 for a, b in zip(ours[10:], theirs[10:], strict=True))


@pytest.mark.soak
def test_uneven_and_empty_shards_are_resumed_in_others(go: Go) -> None:
    """CBAM's last convolution has one row, the output layer ten: four ranks hold 1 0 0 0 and 3 3 3 1, then two do."""
    args = [*COMMON, "--model.backbone", "timm/test_resnet", "--model.cbam", "4", "--model.freeze", *FROZEN]
    args += ["--model.weights", "none", "--train.max-steps", "6"]
    first = go("uneven", args, True, "SIGTERM@3:step:2", world=4)
    assert [rank["networks"][0]["empty"] > 0 for rank in first.ranks] == [False, True, True, True]
    assert first.last["model.layer4.1.spatial.weight"].shape == (1, 2, 7, 7)
    second, whole = go("uneven", args, True), go("even", args, False)
    assert equal(second.start, first.last) and first.ranks[0]["steps"] == 3
    same_figures(second, whole, 1e-5)
    assert images(second.out) == images(whole.out)


@pytest.mark.soak
@pytest.mark.parametrize("moment", ["micro:13", "update:11", "evaluation:3", "between files:5", "after rename:2"])
def test_a_sharded_run_killed_anywhere_is_the_uninterrupted_one(
    go: Go, runs: Runs, folder: Path, fsdp: Attempt, moment: str
) -> None:
    name = f"killed-{moment.replace(' ', '-').replace(':', '-')}"
    killed = runs.run(folder / name, WHOLE, 2, f"SIGKILL@0:{moment}", **FSDP)
    assert killed.codes == [-9, -9] and killed.faults == [moment.split(":")[0]], killed.output
    attempt = go(name, WHOLE, True)
    assert equal(attempt.last, fsdp.last)
    same_figures(attempt, fsdp, 0)
    assert audit(attempt.out, 100, 32, balanced=False)["problems"] == []


# --- what is written ---


def architecture(backbone: str) -> nn.Module:
    """Without this package."""
    if backbone.startswith("timm/"):
        return timm.create_model(backbone.removeprefix("timm/"), num_classes=10)
    assert backbone == RESNEXT
    return ResNet(Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=8, num_classes=10)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("which", "backbone"),
    [("fsdp", "timm/test_efficientnet_gn"), ("large", RESNEXT), ("frozen", "timm/test_resnet")],
)
def test_what_is_saved_is_a_plain_network(which: str, backbone: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    attempt = found if which == "fsdp" else found[True]
    last = newest(attempt.out)
    for file, part in ((last / "model.safetensors", "model"), (last / "average.safetensors", "average"),
                       (attempt.out / "best" / "model.safetensors", "average")):  # fmt: skip
        saved = load_file(file)
        assert architecture(backbone).load_state_dict(saved, strict=True).missing_keys == []
        if file.parent.name == "best" and which != "large":
            continue  # an earlier epoch's may be the best; the large one has none but the last
        assert equal(saved, attempt.part(part))
    assert equal(load_file(last / "optimizer.safetensors"), attempt.part("optimizer"))


@pytest.mark.integration
def test_frozen_stages_keep_their_bytes(frozen: dict[bool, Attempt], weights: Path) -> None:
    before = load_file(weights)
    for attempt in frozen.values():
        assert equal(attempt.start, {f"{part}.{k}": v for part in ("model", "average") for k, v in before.items()})
        for part in ("model", "average"):
            after = attempt.part(part)
            assert sorted(after) == sorted(before)
            for name, value in after.items():
                learns = name.startswith(("layer4.", "fc."))
                assert value.equal(before[name]) != learns, (part, name)
                assert value.numpy().tobytes() == before[name].numpy().tobytes() or learns
        saved = load_file(newest(attempt.out) / "optimizer.safetensors")
        assert saved and all(name.startswith(("layer4.", "fc.")) for name in saved)
        for rank in attempt.ranks:
            assert "layer4.0.bn1" in rank["training"]
            assert not [
                name for name in rank["training"] if name.startswith(("conv1", "bn1", *(f"{f}." for f in FROZEN)))
            ]


@pytest.mark.integration
@pytest.mark.parametrize("sharded", [False, True])
def test_batchnorm_statistics_are_the_same_on_both_ranks(
    sharded: bool, large: dict[bool, Attempt], frozen: dict[bool, Attempt]
) -> None:
    for attempt, backbone in ((large[sharded], RESNEXT), (frozen[sharded], "timm/test_resnet")):
        first, second = (rank["buffers"] for rank in attempt.ranks)
        assert first == second and len(set(first)) == len(first) == attempt.ranks[0]["steps"]
        names = [name for name, _ in architecture(backbone).named_buffers()]
        saved = load_file(newest(attempt.out) / "model.safetensors")
        assert sha({name: saved[name] for name in names}) == first[-1]
        assert [rank["weights"] for rank in attempt.ranks].count(attempt.ranks[0]["weights"]) == (1 if sharded else 2)


@pytest.mark.integration
def test_the_moving_average_is_that_of_the_whole_weights(
    fsdp: Attempt, chain: list[Attempt], large: dict[bool, Attempt], frozen: dict[bool, Attempt]
) -> None:
    """Recomputed from the weights after each step in float64: 0.9 of the average and 0.1 of the weights."""
    for attempt in (fsdp, chain[1], large[True], frozen[True]):
        average = attempt.part("average")
        assert sorted(average) == sorted(attempt.ema)
        for name, value in average.items():
            assert torch.allclose(value.double(), attempt.ema[name], rtol=1e-6, atol=1e-6), name
        moved = [n for n, value in average.items() if not value.equal(attempt.part("model")[n])]
        assert moved  # it is not the weights themselves


# --- rejected ---


@pytest.mark.integration
@pytest.mark.parametrize(
    ("world", "args", "env", "parts"),
    [
        (
            3,
            [],
            {},
            ["4 micro-batches", "train.batch 32", "on 3 processes", "each must have the same number", "DDP"],
        ),
        (2, [], {"FSDP_VERSION": "1"}, ["FSDP version 1", "loses the optimizer's state", "fsdp.yaml"]),
        (2, ["--train.reduce", "exact"], {}, ["train.reduce is exact", "--train.reduce fast", "ddp.yaml"]),
        (1, [], {}, ["there is one process", "--num_processes 2", "one_gpu.yaml"]),
        (2, ["--train.compile", "True"], {}, ["train.compile is not tested with FSDP", "ddp.yaml"]),
    ],
    ids=["uneven", "version", "exact", "alone", "compile"],
)
def test_what_cannot_be_sharded_is_rejected(
    runs: Runs, tmp_path: Path, world: int, args: list[str], env: dict[str, str], parts: list[str]
) -> None:
    ended = runs.run(tmp_path / "run", [*NORMED, *args], world, **(FSDP | env))
    assert ended.codes == [2] * world, ended.output
    assert "Traceback" not in ended.output and ended.output.count("user error: ") == 1
    assert ended.exit["outcome"] == "user_error"
    for part in parts:
        assert part in ended.exit["reason"] and part in ended.output
    assert not (tmp_path / "run" / "checkpoints").exists()


# --- the command ---


@pytest.mark.integration
def test_the_real_command(tmp_path: Path) -> None:
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--main_process_port", str(free_port())]
    command = [*launcher, "--config_file", str(ROOT / "accelerate_configs" / "fsdp.yaml"), str(ROOT / "train.py")]
    args = [*SMALL, "--train.reduce", "fast", "--train.max-steps", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *args], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ended = Result([0, 0], done.stdout + done.stderr, tmp_path / "run")
    assert ended.exit["outcome"] == "done" and ended.exit["step"] == 2
    (start,) = [event for event in read_events(ended.out) if event["event"] == "start"]
    assert (start["processes"], start["sharded"]) == (2, True)
    assert load_file(ended.out / "best" / "model.safetensors")["fc.weight"].shape[0] == 10


@pytest.mark.parametrize(("name", "processes", "machines"), [("fsdp", 2, 1), ("fsdp_2node", 8, 2)])
def test_the_launcher_files_ask_for_version_two(name: str, processes: int, machines: int) -> None:
    found = yaml.safe_load((ROOT / "accelerate_configs" / f"{name}.yaml").read_text())
    assert found["distributed_type"] == "FSDP"
    assert found["fsdp_config"] == {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": False}
    assert (found["num_processes"], found["num_machines"]) == (processes, machines)
    assert "mixed_precision" not in found
