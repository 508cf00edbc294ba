"""The machine that a run is planned for; apart from the plan, whose libraries take seconds to load."""

from dataclasses import dataclass

from cls.commands.gpus import Gpu, find


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
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

    def card(self) -> Gpu | None:
        """The named GPU; None where only its memory is given; ValueError for neither, both, or an unknown name."""
        if bool(self.gpu) == bool(self.memory):
            raise ValueError("gpu: name it (--gpu a6000) or, for another type, give its memory in GB (--memory 16)")
        if self.memory < 0:
            raise ValueError(f"memory is {self.memory}: give the GPU's memory in GB")
        return find(self.gpu) if self.gpu else None

    @property
    def world_size(self) -> int:
        return self.gpus * self.nodes
