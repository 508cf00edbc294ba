"""The document of ``cls plan`` as text."""

import sys
from datetime import timedelta
from typing import Any

from rich.table import Table

from cls.runtime.console import console

ROWS = {
    "recipe": "recipe", "precision": "precision", "classes": "classes", "training_images": "training images",
    "gpu": "GPU", "gpus_per_node": "GPUs of a node", "nodes": "nodes",
    "micro_batch": "micro-batch asked for", "fits": "does it fit",
    "largest_micro_batch": "largest micro-batch that fits",
    "estimated_for_micro_batch": "the rest is for a micro-batch of",
    "memory_by_micro_batch_gib": "memory by micro-batch, GiB",
    "micro_batches_per_gpu": "micro-batches of each GPU", "sharding": "DDP or FSDP",
    "gflop_per_image": "work of an image, GFLOP", "exchange_mb_per_step": "sent per step and GPU, MB",
    "step_seconds": "a step", "exchange_seconds": "of it exchange", "epoch_seconds": "an epoch with its validation",
    "whole_run_hours": "the whole run", "images_per_second": "images per second",
    "images_per_second_per_core": "images a core decodes per second", "cores_per_node": "cores a node needs",
    "host_memory_gib_per_node": "memory of a node, GiB", "requeues": "times the job is queued again",
    "time_of_one_job": "--time for all in one job",
}  # fmt: skip
"""What is printed, in this order, and how it is called."""


def table(document: dict[str, Any]) -> None:
    """Print the plan. Times and speeds have two ends: the slower and the faster assumption."""
    memory = Table("memory of one GPU", "GiB", box=None)
    memory.columns[1].justify = "right"
    for name, value in document["memory_gib"].items():
        memory.add_row(name, f"{value:.2f}")
    memory.add_row("in all", f"{sum(document['memory_gib'].values()):.2f}")
    memory.add_row(f"usable on {document['gpu']}", f"{document['usable_memory_gib']:.2f}")
    console.print(memory)
    rows = Table.grid(padding=(0, 2))
    for name, words in ROWS.items():
        if name in document:
            text, fastest = _shown(name, document[name]), document.get(f"fastest_{name}")
            rows.add_row(words, f"{text} to {_shown(name, fastest)}" if fastest else text)
    console.print("", rows)
    for text in document.get("assumptions", []):
        console.print(f"assumed: {text}", markup=False, highlight=False)
    for text in document["problems"]:
        console.print(f"problem: {text}", style="red", markup=False, highlight=False)
    print(document["sbatch"], file=sys.stderr)  # unwrapped, to copy


def _shown(name: str, value: Any) -> str:
    if type(value) is bool:
        return "yes" if value else "no"
    if name.endswith(("_seconds", "_hours")):
        return _duration(value * 3600 if name.endswith("_hours") else value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown('', inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return " + ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if type(value) is int else str(value)


def _duration(seconds: float) -> str:
    """0.213 s, 48 s, 0:12:30, 2 days, 3:00:00."""
    return str(timedelta(seconds=round(seconds))) if seconds >= 60 else f"{seconds:.3g} s"
