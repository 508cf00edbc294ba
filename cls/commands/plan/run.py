"""What a run needs before it is queued: memory, micro-batches, time, cores, and the line to submit."""

import shlex
from dataclasses import replace
from math import ceil, inf
from pathlib import Path
from typing import Any

import torch

from cls.commands.fields import changed_fields
from cls.commands.gpus import USABLE, Gpu, precision_on
from cls.commands.options import PlanOptions
from cls.commands.plan import roofline, sbatch
from cls.commands.plan.memory import Step, largest_unit, trace_step, with_exchange, workspace
from cls.config import Run, change
from cls.data.sources import Splits, load
from cls.distributed.micro_batches import advice
from cls.distributed.tree_reduce import shares
from cls.models.build import check_model
from cls.training.steps import Steps
from cls.validate import check

GIB = 2**30
PROCESS_GIB = 6.0  # host memory of one training process and its loader workers; an assumption, not measured by us
SCRIPT = "slurm/train.sh"


def plan(run: Run, options: PlanOptions) -> dict[str, Any]:
    """The plan as one document; names of figures end in their unit, times are the slower end's unless named fastest.

    ``problems`` lists what would not work and mistakes in the script, each with its remedy. ValueError, naming the
    field, for what cannot be planned.
    """
    gpu = options.card()
    precision = precision_on(run, gpu)
    check(run)
    _check_options(run, options)
    check_model(replace(run.model, weights="none"), run.data)
    splits = load(run.data, run.seed)
    classes, steps = len(splits.classes), Steps(len(splits.train), run.train)
    step = trace_step(run, classes, precision)
    usable = gpu.usable_gib if gpu else USABLE * options.memory
    needs = _needs(step, run, classes, options)
    asked, fitting = run.train.micro_batch, [size for size, need in needs.items() if sum(need.values()) <= usable]
    best = max(fitting, default=0)
    problems = [] if asked in fitting else [advice(run, best)]
    chosen = change(run, train={"micro_batch": asked if asked in fitting or not best else best})
    document: dict[str, Any] = {
        "recipe": run.recipe, "gpu": gpu.name if gpu else f"{options.memory:g} GB", "gpus_per_node": options.gpus,
        "nodes": options.nodes, "precision": precision, "classes": classes, "training_images": len(splits.train),
        "fits": asked in fitting, "micro_batch": asked, "largest_micro_batch": best,
        "estimated_for_micro_batch": chosen.train.micro_batch,
        "usable_memory_gib": round(usable, 2),
        "memory_gib": {name: round(value, 3) for name, value in needs[asked].items()},
        "memory_by_micro_batch_gib": {str(size): round(sum(need.values()), 2) for size, need in needs.items()},
        "micro_batches_per_gpu": _carried(chosen, options),
        "sharding": _sharding(step, run, classes, asked, options),
        "gflop_per_image": round(float(step.work(asked)[0].sum()) / asked / 1e9, 2),
        "host_memory_gib_per_node": round(_host_gib(step, options), 1),
    }  # fmt: skip
    if gpu:
        document |= _times(chosen, options, gpu, precision, step, steps, splits)
    document["sbatch"] = command(chosen, options, document.get("cores_per_node", 0))
    document["problems"] = problems + _script_problems(options, gpu, document)
    return document


def _check_options(run: Run, options: PlanOptions) -> None:
    for name in ("gpus", "nodes"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} is {getattr(options, name)}: give 1 or more")
    if options.link <= 0:
        raise ValueError(f"link is {options.link}: give the network's Gbit/s")
    if options.time:
        try:
            sbatch.seconds(options.time)
        except ValueError as error:
            raise ValueError(f"time: {error}") from None
    if options.script and not Path(options.script).is_file():
        raise ValueError(f"script: {options.script}: no such file")
    if not run.data.path:
        raise ValueError(f"data.path is empty: name the images with {run.recipe} --data.path FOLDER")
    count, world_size = run.train.batch // run.train.micro_batch, options.world_size
    if world_size > count:
        raise ValueError(
            f"gpus: {world_size} GPUs but only {count} micro-batches (train.batch {run.train.batch} / "
            f"train.micro_batch {run.train.micro_batch}): plan for {count} GPUs in all, or "
            f"--train.batch {world_size * run.train.micro_batch} --optim.scale-lr sqrt"
        )
    if not options.fsdp:
        return
    if world_size == 1:
        raise ValueError("fsdp: there is one GPU, nothing can be sharded: give --gpus 2 or more, or leave it out")
    if run.train.reduce == "exact":
        raise ValueError("fsdp: train.reduce is exact, but FSDP adds in its own order: add --train.reduce fast")
    if count % world_size:
        raise ValueError(
            f"fsdp: {count} micro-batches on {world_size} GPUs, but each must carry as many: plan for a number of "
            f"GPUs that divides {count}, or without --fsdp"
        )


def _needs(step: Step, run: Run, classes: int, options: PlanOptions) -> dict[int, dict[str, float]]:
    """GiB by part for each micro-batch size that gives every GPU at least one; with FSDP equally many."""
    unit = largest_unit(run, classes) if options.fsdp else 0
    needs = {}
    for size in range(2 if step.norms else 1, run.train.batch + 1):
        count, rest = divmod(run.train.batch, size)
        if not rest and count >= options.world_size and not (options.fsdp and count % options.world_size):
            needs[size] = _need(step, size, options.world_size, options.fsdp, unit)
    if run.train.micro_batch not in needs:  # everything else was rejected before
        raise ValueError("train.micro_batch is 1: BatchNorm needs the statistics of 2 or more images")
    return needs


def _carried(run: Run, options: PlanOptions) -> list[int]:
    return [len(share) for share in shares(run.train.batch // run.train.micro_batch, options.world_size)]


def _need(step: Step, size: int, world_size: int, fsdp: bool, unit: int) -> dict[str, float]:
    """GiB by part."""
    parts = with_exchange(step, size, world_size, fsdp, unit)
    return {name: value / GIB for name, value in parts.items()} | {"workspace": workspace(sum(parts.values())) / GIB}


def _sharding(step: Step, run: Run, classes: int, size: int, options: PlanOptions) -> str:
    """DDP or FSDP, in a sentence."""
    world_size = max(2, options.world_size)
    if run.train.batch // size < world_size:
        return "DDP: there is one micro-batch, so one GPU."
    whole = sum(_need(step, size, world_size, False, 0).values())
    try:
        unit = largest_unit(run, classes)
    except ValueError as error:
        return f"DDP: FSDP is not possible ({error})."
    fast = Step(change(run, train={"reduce": "fast"}), step.tapes, step.norms)
    saved = whole - sum(_need(fast, size, world_size, True, unit).values())
    verdict = "FSDP is worth it" if saved > 0.25 * whole else "DDP is right"
    return (
        f"{verdict}: on {world_size} GPUs FSDP saves {max(0.0, saved):.1f} of {whole:.1f} GiB each; only parameters, "
        "gradients and optimizer are divided, activations are not, and it needs reduce fast."
    )


def _host_gib(step: Step, options: PlanOptions) -> float:
    """Per node: each process with its workers and a pinned copy of the saved state."""
    state = sum(step.held(part) for part in ("parameters", "average", "optimizer"))
    return options.gpus * (PROCESS_GIB + state / GIB)


def _times(
    run: Run, options: PlanOptions, gpu: Gpu, precision: str, step: Step, steps: Steps, splits: Splits
) -> dict[str, Any]:
    """Estimated seconds at both ends, the cores for the faster one, the requeues of the slower one."""
    slower, faster = (
        roofline.estimate(step, run, gpu, precision, options.gpus, options.nodes, options.link, options.fsdp, end)
        for end in (roofline.SLOWER, roofline.FASTER)
    )
    slowest, fastest = (_durations(run, found, steps, splits) for found in (slower, faster))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    try:
        per_core = roofline.images_per_second_per_core(run, splits)
    finally:
        torch.set_num_threads(threads)
    whole, epoch = slowest["whole_run_hours"] * 3600, slowest["epoch_seconds"]
    return {
        **slowest,
        **{f"fastest_{name}": value for name, value in fastest.items()},
        "exchange_mb_per_step": round(slower.exchange_bytes / 1e6, 1),
        "images_per_second_per_core": round(per_core, 1),
        "cores_per_node": options.gpus
        * roofline.cores_needed(fastest["images_per_second"] / options.world_size, per_core),
        "requeues": _requeues(options.time, whole, epoch),
        "time_of_one_job": sbatch.one_job(whole),
        "assumptions": [*roofline.ASSUMPTIONS, f"{gpu.name}: NVIDIA's figures, {USABLE:.0%} of its memory usable"],
    }


def _durations(run: Run, found: roofline.Speed, steps: Steps, splits: Splits) -> dict[str, float]:
    look = len(splits.val or ()) / run.train.batch * found.compute / 3
    whole = steps.total * found.step + ceil(steps.total * run.train.batch / len(splits.train)) * look
    return {
        "step_seconds": found.step,
        "exchange_seconds": found.exchange,
        "epoch_seconds": len(splits.train) / run.train.batch * found.step + look,
        "whole_run_hours": whole / 3600,
        "images_per_second": run.train.batch / found.step,
    }


def _requeues(time: str, whole: float, epoch: float) -> int:
    limit = sbatch.seconds(time) if time else inf
    least = sbatch.STARTUP_SECONDS + sbatch.CHECKPOINT_SECONDS + epoch
    if limit <= least:
        raise ValueError(f"time is {time}, shorter than start-up and one epoch: give {ceil(least / 60)} or more")
    return sbatch.requeues(limit, whole)


def command(run: Run, options: PlanOptions, cores: int) -> str:
    """The line to submit: the recipe and only the fields that differ from it, quoted for a shell.

    ``cores``: those that feed a node's GPUs, 0 if unknown. The type of GPU is as in the script.
    """
    script = sbatch.read(Path(options.script).read_text(errors="replace")) if options.script else None
    kind = (script.get("gpus-per-node") if script else "").rpartition(":")[0]
    words = ["sbatch", f"--nodes={options.nodes}", f"--gpus-per-node={f'{kind}:' if kind else ''}{options.gpus}"]
    words += [f"--time={options.time}"] if options.time else []
    words += [f"--cpus-per-task={options.cpus or cores}"] if options.cpus or cores else []
    words += [options.script or SCRIPT, run.recipe]
    words += changed_fields(run)
    return ("CLS_ACCELERATE=fsdp " if options.fsdp else "") + shlex.join(words)


def _script_problems(options: PlanOptions, gpu: Gpu | None, document: dict[str, Any]) -> list[str]:
    cores, few = document.get("cores_per_node", 0), list[str]()
    if options.cpus and options.cpus < cores:
        few = [f"cpus: {options.cpus} cores a node cannot feed its GPUs: ask for --cpus {cores}"]
    if not options.script:
        return few
    needs = sbatch.Needs(
        gpu=gpu.slurm if gpu else "", gpus=options.gpus, nodes=options.nodes, cores=cores,
        host_gib=document["host_memory_gib_per_node"], epoch_seconds=document.get("epoch_seconds", 0.0),
        whole_seconds=document.get("whole_run_hours", 0.0) * 3600,
    )  # fmt: skip
    found = sbatch.check(Path(options.script).read_bytes().decode(errors="replace"), needs)
    found = [problem for problem in found if not (options.time and problem.rule == "time")]  # the command line's counts
    return few + [f"{options.script}{f':{p.line}' if p.line else ''}: {p.rule}: {p.text}" for p in found]
