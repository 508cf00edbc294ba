"""The machine that a run is planned for; apart from the plan, whose libraries take seconds to load."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Request:
    """The machine that a run is planned for."""

    gpu: str = ""
    """GPU type, written as you like: 3090, rtx3090, a6000, 'RTX 3060 Ti', a100, a100-80, h100."""
    memory: float = 0.0
    """Memory of a GPU of another type, GB; then without an estimate of time."""
    gpus: int = 1
    """GPUs per node."""
    nodes: int = 1
    """Nodes (machines)."""
    cpus: int = 0
    """Cores per node that you mean to ask for; 0: those of --script."""
    time: str = ""
    """Time limit of a job as SLURM writes it (12:00:00, 1-00:00:00); empty: none."""
    script: str = ""
    """Batch script whose #SBATCH lines are compared with the plan; it is then the one to submit."""
    fsdp: bool = False
    """Shard parameters, gradients and optimizer over the GPUs (needs --train.reduce fast)."""
    link: float = 10.0
    """Network between nodes, Gbit/s."""

    @property
    def world(self) -> int:
        return self.gpus * self.nodes
