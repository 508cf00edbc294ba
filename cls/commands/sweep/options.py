"""What is to be done with a sweep."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The options of ``cls sweep NAME``, besides the fields of train.py."""

    seeds: int = 3
    """Runs of each row, with seeds 0, 1, …"""
    run: bool = False
    """Run here what is not done, one after the other: done runs are skipped, interrupted ones go on."""
    slurm: str = ""
    """Write what is not done to this file, a line each for slurm/sweep.sh, and print the sbatch command."""
    wandb: str = ""
    """Write the same space to this file as a W&B sweep."""
    launch: str = "accelerate launch train.py"
    """What stands before the recipe: a launcher with its options, and the training script."""
