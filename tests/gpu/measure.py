"""Measurements of groups and networks, in a process that is replaced when a row crashes, hangs or breaks CUDA.

python -m tests.gpu.measure OUT SECONDS
"""

import subprocess
import sys
import time
from pathlib import Path

from tests.gpu.processes import kill
from tests.gpu.rows import Figures, Rows


def started(rows: Rows) -> Figures | None:
    """The row that is being answered."""
    return next((line for line in rows.read().values() if line["state"] == "started"), None)


def watch(worker: subprocess.Popen[bytes], rows: Rows, end: float) -> None:
    """Until the worker ends; one whose row lasts too long is killed, and that row has its answer."""
    while worker.poll() is None:
        time.sleep(0.2)
        row, now = started(rows), time.time()
        if now > end:
            kill(worker)
            if row:
                rows.write(
                    row["row"], "skipped", why=f"not over after {now - row['time']:.0f} s, when time was used up"
                )
        elif row and now - row["time"] > row["limit_s"]:
            kill(worker)
            rows.write(row["row"], "FAILED", why=f"not over after {row['limit_s']:g} s")
    row = started(rows)
    if row:
        rows.write(row["row"], "FAILED", why=f"its process ended with {worker.returncode}")


def main(out: Path, seconds: float, program: tuple[str, ...] = ("-m", "tests.gpu.worker")) -> None:
    rows, end = Rows(out), time.time() + seconds
    command = [sys.executable, *program, str(out), str(end)]
    while time.time() < end:
        before = len(rows.path.read_text()) if rows.path.exists() else 0
        worker = subprocess.Popen(command, start_new_session=True)
        watch(worker, rows, end)
        if worker.returncode == 0:
            return
        if rows.path.exists() and len(rows.path.read_text()) > before:
            continue  # the rest of the rows in a new process
        rows.write("measurements", "FAILED", why=f"no row could be started: the process ended with {worker.returncode}")
        return


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
