"""The log of a run whose directory is no longer there."""

from pathlib import Path

import pytest
from torch import nn

from cls.config import Run, change, to_yaml
from cls.tracking.run_dir import RunDir
from cls.training.logger import RunLogger
from cls.training.steps import Steps
from tests.distributed.test_tree_reduce import world


def test_a_run_directory_that_was_renamed_is_a_stop_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cls.training.logger.LOOK_SECONDS", 0.0)
    run, out, alone = change(Run(), track={"wandb": "disabled"}), tmp_path / "run", world()
    out.mkdir()
    (out / "config.yaml").write_text(to_yaml(run))
    with RunLogger(RunDir(out, run, "", 0), alone, Steps(100, run.train), 0, nn.Linear(2, 2)) as logger:
        logger.log_steps([])
        assert alone.stop.reason == ""
        out.rename(tmp_path / "renamed")
        logger.log_steps([])
        assert alone.stop.reason == f"{out} no longer exists"
        (tmp_path / "renamed").rename(out)
