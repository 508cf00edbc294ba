"""The list of the recipes: parameters are counted once and kept; the table fits a terminal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cls.commands.recipes import _counted
from cls.config import Model
from tests.harness import ROOT, environment

SMALL, RESNET = Model(backbone="resnext14_8x8d", weights="none"), Model(backbone="resnet18", weights="none")
COUNTS = {SMALL: 5_294_666, RESNET: 11_227_812}  # 10 and 100 classes


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "parameters.json"


def test_parameters_are_counted_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {SMALL: 10, RESNET: 100}
    assert _counted(models) == COUNTS and "counting the parameters of 2 networks, once" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("cls.models.build.count_parameters", None)
        assert _counted(models) == COUNTS and capsys.readouterr().err == ""
        patch.setattr("cls.commands.recipes.version", lambda name: "0.1")
        with pytest.raises(TypeError):  # counted again
            _counted(models)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"x": "y"}', '{"a": 1'])
def test_a_damaged_file_is_replaced(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert _counted({SMALL: 10}) == {SMALL: COUNTS[SMALL]}
    assert [*json.loads(cache.read_text()).values()] == [COUNTS[SMALL]]


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.parent.write_text("a file")
    assert _counted({SMALL: 10}) == {SMALL: COUNTS[SMALL]}


def test_a_page_and_a_known_table_load_no_torch(cache: Path) -> None:
    code = (
        "import sys; from cls.commands.recipes import _counted, recipe_page; from cls.config import Model; "
        "_counted({}); recipe_page('best'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment(PYTHONPATH=str(ROOT)))
