"""A run that starts from another one: the bits of the same options typed out, also after a kill."""

import hashlib
import shutil
from pathlib import Path

import pytest

from cls.evaluation.run_record import RunRecord
from tests.harness import TINY
from tests.harness.records import Result, bits
from tests.harness.runs import Runs

pytestmark = pytest.mark.integration


def test_a_run_starts_from_the_best_weights_of_another(runs: Runs, tiny: Result, tmp_path: Path) -> None:
    more = ["--train.epochs", "1.6", "--optim.schedule", "cosine", "--seed", "5"]
    typed = runs.run(tmp_path / "typed", [*TINY, *more, "--model.weights", str(tiny.out)])
    assert typed.codes == [0], typed.output
    words = ["--start-from", str(tiny.out), *more]
    assert runs.run(tmp_path / "run", words, 2, "SIGKILL@0:step:4").codes == [-9, -9]
    run = runs.run(tmp_path / "run", words)
    assert run.codes == [0] and bits(run) == bits(typed), run.output
    assert [row["step"] for row in run.rows if "train/loss" in row] == [1, 2, 3, 4] and run.rows[-1]["epoch"] == 1.6

    digest = hashlib.sha256((tiny.out / "best" / "model.safetensors").read_bytes()).hexdigest()
    assert RunRecord(run.out).weights_sha256 == RunRecord(typed.out).weights_sha256 == digest
    assert f"{tiny.out}, sha256 {digest[:16]}…" in (run.out / "report.html").read_text()
    assert RunRecord(tiny.out).weights_sha256 == ""
    assert all(("weights_sha256" in start) == (start["step"] == 0) for start in RunRecord(run.out).starts)

    longer = runs.run(tmp_path / "typed", [*TINY, *more, "--model.weights", str(tiny.out), "--train.epochs", "3"])
    command = f"train.py digits --start-from {tmp_path}/typed --train.epochs 3 --out {tmp_path}/typed-2"
    assert longer.codes == [2] and command in longer.output.replace("\n", " ")


def test_a_run_resumes_without_the_one_it_started_from(runs: Runs, tiny: Result, tmp_path: Path) -> None:
    shutil.copytree(tiny.out, tmp_path / "earlier")
    words = ["--start-from", str(tmp_path / "earlier"), "--train.epochs", "1.6", "--seed", "5"]
    whole = runs.run(tmp_path / "whole", words)
    assert runs.run(tmp_path / "run", words, 2, "SIGTERM@0:step:3").codes == [85, 85]
    shutil.rmtree(tmp_path / "earlier")
    run = runs.run(tmp_path / "run", words, 2)
    assert run.codes == [0, 0] and bits(run) == bits(whole), run.output
    assert [start["step"] for start in RunRecord(run.out).starts] == [0, 3]
    assert RunRecord(run.out).weights_sha256 == RunRecord(whole.out).weights_sha256 != ""
    other = runs.run(tmp_path / "other", words)
    assert other.codes == [2] and f"start-from: {tmp_path}/earlier" in other.output, other.output
