"""The check of a GPU runs to its end on a CPU, with tiny networks: each row is answered, and none failed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import measure
from tests.gpu.rows import Rows
from tests.gpu.table import main as print_table
from tests.harness import ROOT, environment

NETWORKS = ("attention-gate", "cbam-mixup", "mlp-head", "se-resnext", "resnet50-mlp")
REPEATED = ("JPEGs fp32 exact, killed", "two ranks on this device")
EXPECTED = {
    "machine", "digits bf16 fast", "JPEGs fp32 exact", *REPEATED, "more processes than GPUs", "cls doctor",
    "norms of unaligned gradients", "collectives in a group of one", "DDP in a group of one", "FSDP in a group of one",
    *(f"{name} {what}" for name in NETWORKS
      for what in ("exact", "fast", "bare loop", "timm's loop", "memory of cls plan")),
    *(f"mlp-head {mode}, {what}" for mode in ("exact", "fast")
      for what in ("JPEGs loaded", "channels_last False", "deterministic False")),
    "mlp-head first start", "mlp-head bare loop, channels_last False", "mlp-head exact, micro-batch 8",
}  # fmt: skip


@pytest.mark.integration
def test_the_check_answers_every_row(tmp_path: Path) -> None:
    env = environment(SMALL="1", SECONDS_RUNS="400", SECONDS_MEASURE="300", WHEELS="")
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # check.sh asks for python3
    done = subprocess.run(
        ["bash", str(ROOT / "tests/gpu/check.sh"), str(tmp_path / "out")], env=env, capture_output=True, text=True
    )
    rows = Rows(tmp_path / "out").read()
    failed = {name: line for name, line in rows.items() if line["state"] != "ok"}
    assert not failed and done.returncode == 0, done.stdout + done.stderr
    assert set(rows) == EXPECTED
    assert all("same_bits" in rows[name] for name in REPEATED)
    assert all(rows[f"{name} exact"]["images_per_second"] > 0 for name in NETWORKS)
    table = (tmp_path / "out" / "table.md").read_text()
    assert (
        all(f"| {name} |" in table for name in EXPECTED - {"machine"})
        and f"{len(EXPECTED) - 1} rows, 0 FAILED" in table
    )


WORKER = """
import os, sys, time
from pathlib import Path
from tests.gpu.rows import FINAL, Rows
rows = Rows(Path(sys.argv[1]))
work = {"crash": os.abort, "hang": lambda: time.sleep(60), "fine": lambda: rows.write("fine", "ok")}
rows.plan(work)
for name in work:
    if rows.read()[name]["state"] not in FINAL:
        rows.write(name, "started", limit_s=0.5)
        work[name]()
"""


@pytest.mark.integration
def test_a_row_that_crashes_or_hangs_hides_no_other(tmp_path: Path) -> None:
    measure.main(tmp_path, 60, ("-c", WORKER))
    answers = {name: (line["state"], line.get("why", "")) for name, line in Rows(tmp_path).read().items()}
    assert answers == {
        "crash": ("FAILED", "its process ended with -6"),
        "hang": ("FAILED", "not over after 0.5 s"),
        "fine": ("ok", ""),
    }


@pytest.mark.integration
def test_a_worker_that_does_not_start_is_a_row(tmp_path: Path) -> None:
    measure.main(tmp_path, 60, ("-c", "raise SystemExit(3)"))
    assert Rows(tmp_path).read()["measurements"]["why"] == "no row could be started: the process ended with 3"


def test_a_failed_row_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows(tmp_path)
    rows.plan(["one", "two", "three"])
    assert not rows.answer("one", lambda: {"share": 1 / 0})
    assert rows.answer("two", lambda: {"step_ms": 1.5, "waited": "2 %"})
    assert print_table(tmp_path) == 1
    lines = (tmp_path / "table.md").read_text().splitlines()[4:7]
    assert lines[0].startswith("| one |") and lines[0].endswith("FAILED: ZeroDivisionError: division by zero |")
    assert lines[1:] == ["| two |  | 1.5 |  |  | waited 2 % |", "| three |  |  |  |  | skipped: no time was left |"]
