"""Runs of part of an epoch, without validation images or with a part of train: the same bits after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from cls.commands.evaluate import evaluate_images
from cls.commands.options import EvaluateOptions, ReportOptions
from cls.commands.report import report_run
from cls.commands.sweep.table import show_directory
from cls.config import NO_VALIDATION
from cls.evaluation.compare import compare
from cls.evaluation.run_record import RunRecord
from cls.runtime.signals import StopSignal
from cls.training.checkpoint import checkpoints
from tests.harness import TINY
from tests.harness.records import Result, images, timeless
from tests.harness.runs import Runs

pytestmark = pytest.mark.integration
ENDS = {3: 1, 5: 2, 7: 2.6}  # 7 steps of 16 of 40 images; step -> epochs done
ARGS = [*TINY, "--train.epochs", "2.6", "--optim.schedule", "cosine"]


def found(result: Result) -> dict[str, Any]:
    """Everything that must have the same bits."""
    last = checkpoints(result.out / "checkpoints")[-1]
    files = [*sorted(last.glob("*.safetensors")), *sorted((result.out / "predictions").glob("*.parquet"))]
    whole = {path.name: path.read_bytes() for path in files}
    return whole | {"rows": timeless(result.rows), "images": images(result.out)}


@pytest.mark.parametrize("hold_out", ["none", "2/3"])
def test_a_run_of_part_of_an_epoch(runs: Runs, tmp_path: Path, hold_out: str) -> None:
    args = [*ARGS, "--data.hold-out", hold_out]
    whole = runs.run(tmp_path / "whole", args)
    assert whole.codes == [0], whole.output
    assert runs.run(tmp_path / "run", args, 2, "SIGKILL@0:step:6").codes == [-9, -9]
    again = runs.run(tmp_path / "run", args, 1)
    assert again.codes == [0] and found(again) == found(whole), again.output

    assert {row["step"]: row["epoch"] for row in whole.rows if "train/loss" not in row} == ENDS
    assert [row["epoch"] for row in whole.rows if "train/loss" in row] == [1, 1, 1, 2, 2, 2.6, 2.6]
    assert "epoch 2.6/2.6 done" in whole.output and whole.exit["step"] == 7
    assert any("val/accuracy" in row for row in whole.rows) == (hold_out != "none")
    best, last = whole.out / "best" / "model.safetensors", checkpoints(whole.out / "checkpoints")[-1]
    if hold_out != "none":
        assert RunRecord(whole.out).val is not None and f"val {40} images" in whole.output
        return
    weights, average = load_file(best), load_file(last / "average.safetensors")
    assert all((weights[name] == average[name]).all() for name in average | weights)
    with safe_open(best, framework="pt") as file:
        assert file.metadata()["step"] == "7"
    _says_that_there_is_no_validation(whole)


def _says_that_there_is_no_validation(run: Result) -> None:
    page = (run.out / "report.html").read_text()
    assert NO_VALIDATION in page and "validation accuracy" not in page.lower().replace("no validation", "")
    assert f"done; {NO_VALIDATION}" in run.output
    assert {path.name for path in run.out.glob("*.png")} == {"curves.png"}
    assert json.loads((run.out / "data.json").read_text()).keys() == {"train"}
    name = str(run.out)
    with pytest.raises(ValueError, match=r"no validation images \(data\.hold_out none\); to evaluate .*cls evaluate"):
        evaluate_images([name], "", EvaluateOptions(workers=0), StopSignal())
    with pytest.raises(ValueError, match=r"no validation images \(data\.hold_out none\): try --split test"):
        compare([name])
    with pytest.raises(ValueError, match=r"--predict and --neighbors show validation images: .* no validation images"):
        report_run(name, ReportOptions(predict=True), StopSignal())
    assert report_run(name, ReportOptions(), StopSignal())
    row = next(row for row in show_directory(run.out.parent) if row["run"] == run.out.name)
    assert (row["epochs"], row["best accuracy"], row["outcome"]) == (2.6, "not validated", "done")
