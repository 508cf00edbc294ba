"""TensorBoard event files of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cls.tracking.metrics_log import Mistake, Row


def load() -> None:
    """As that of the W&B page."""
    import torch.utils.tensorboard  # noqa: F401  # 1 s that only runs with the option pay


class TensorBoardWriter:
    """TensorBoard event files, rebuilt from the record at every start."""

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
        """TensorBoard shows curves of its own; the files lie in the run directory."""

    def finish(self, summary: Mapping[str, float]) -> str:
        for key, value in summary.items():
            self._writer.add_scalar(f"summary/{key}", value)
        self._writer.close()
        return ""
