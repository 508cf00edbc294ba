"""The lowest versions that can be installed are those that tests/lowest.sh tries."""

import tomllib

from tests.harness import ROOT


def test_the_floors_of_the_project_are_the_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    floors = [*project["dependencies"], *extras["onnx"], *extras["tensorboard"]]
    lines = (ROOT / "tests" / "lowest.txt").read_text().splitlines()
    pins = [line.replace("==", ">=") for line in lines if not line.startswith("#")]
    assert sorted(floors) == sorted(pins)
