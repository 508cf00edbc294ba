"""The command lines of the README do what they say, executed as they stand there.

`tests/test_contributing.py` parses the lines of all pages, `tests/test_api.py` executes the lines in Python.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from cls.commands.main import parse_command
from cls.runtime.signals import StopSignal
from tests.harness import ROOT, environment
from tests.harness.hub import Hub
from tests.harness.runs import Runs
from tests.harness.untrained import CLASSES, photos
from tests.test_contributing import README, TEXT, printed

pytestmark = pytest.mark.integration

SMALL = [
    "digits", "--data.path", "photos", "--data.size", "32", "--data.workers", "0", "--model.backbone",
    "timm/test_resnet", "--train.epochs", "1", "--train.batch", "8", "--train.micro-batch", "8", "--track.wandb",
    "disabled", "--augment.tta", "identity", "hflip",
]  # fmt: skip
"""What stands for `mlp-head`, whose weights have to be downloaded."""


@pytest.fixture
def place(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README's lines name; its run is started with `--config` from what `--show` prints."""
    photos(tmp_path / "photos", 20, 64, apart=True)
    shutil.copytree(tmp_path / "photos" / "val", tmp_path / "more-photos")
    shown = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SMALL, "--show"], env=environment(), cwd=tmp_path, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    (tmp_path / "FILE").write_text(shown.stdout)
    made = runs.run(tmp_path / "made", ["--config", "FILE"])
    assert made.codes == [0], made.output
    for name in ("photos", "other", "mlp-head-42"):
        shutil.copytree(made.out, tmp_path / "runs" / name)
    stored = tmp_path / "runs" / "other" / "config.yaml"
    stored.write_text(stored.read_text().replace("seed: 0", "seed: 1"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


LEFT = {"fetch": "downloads weights", "tune": "trains mlp-head", "bench": "takes minutes"}
"""Commands of the README that are not executed here; each has tests of its own."""
NAMES = {"clothing": "photos", "RUN": "runs/photos", "USER/NAME": "someone/pets"}
"""What stands in a line for the user's own name of it."""


def test_the_command_lines_of_the_readme_do_what_they_say(
    place: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    documents: dict[str, list[Any]] = {}
    (place / "runs" / "photos" / "report.html").unlink()
    for line in printed(TEXT[README]):
        for words in (shlex.split(part) for part in line.split(" && ")):
            if words[:1] == ["cls"] and words[1] not in LEFT:
                words = [NAMES.get(word, word) for word in words]
                document, problems = parse_command(words[1], words[2:]).do(StopSignal())
                assert problems is None, (line, problems)
                documents.setdefault(words[1], []).append(document)

    for file in ("check.png", "samples.png", "explain.png"):
        with Image.open(place / file) as picture:
            assert picture.format == "PNG" and picture.width > 300
    assert "validation accuracy" in (place / "runs" / "photos" / "report.html").read_text()
    predicted = place / "runs" / "photos" / "predict-test"
    assert len((predicted / "prediction.csv").read_text().splitlines()) == 1 + 80
    assert (predicted / "prediction.zip").is_file()
    (evaluated,) = documents["evaluate"]
    assert evaluated["images"] == 80 and 0 <= evaluated["accuracy"] <= 1 and set(evaluated["classes"]) == set(CLASSES)
    assert {image["predicted"] for image in documents["explain"][0]["images"]} <= set(CLASSES)
    assert [set(made["files"]) - {"config.json"} for made in documents["export"]] == [
        {"model.safetensors", "model.onnx"}, {"model.safetensors", "README.md"},
    ]  # fmt: skip
    assert ModelCard.load(place / "exported" / "README.md").data.tags
    assert sorted(hub.files["someone/pets"]) == ["README.md", "config.json", "model.safetensors"]
    assert documents["audit"][0]["problems"] == []
    said = capsys.readouterr().err
    assert "train.py mlp-head" in said and "sbatch" in said  # of cls sweep and cls plan
    assert documents.keys() >= {"explain", "export", "pack"} and len(documents) >= 11
