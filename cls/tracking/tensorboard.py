"""TensorBoard event files of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cls.tracking.metrics_log import Mistake, Row


def load() -> None:
    """As :func:`cls.tracking.wandb_run.load`."""
    import torch.utils.tensorboard  # noqa: F401  # 1 s, only for runs with the option


class TensorBoardWriter:
    """Event files, rebuilt from metrics.jsonl at every start."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0, flush_secs=10)
        for row in rows:
            self.log(row)

    def log(self, row: Row) -> None:
        for key, value in row.items():
            if key not in ("step", "time"):
                self._writer.add_scalar(key, value, int(row["step"]), walltime=row["time"])

    def results(self, pictures: Mapping[str, Path], mistakes: Sequence[Mistake], model: Path) -> None:
        """Nothing: TensorBoard draws its own curves."""

    def finish(self, summary: Mapping[str, float]) -> str:
        for key, value in summary.items():
            self._writer.add_scalar(f"summary/{key}", value)
        self._writer.close()
        return ""
