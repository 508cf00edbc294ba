"""``cls export --card`` and ``--push``: a model card that says only what is known, and its upload to a hub."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from safetensors import safe_open
from safetensors.torch import save_file
from statsmodels.stats.proportion import proportion_confint

from cls.commands.arguments import Export
from cls.commands.export.card import (
    LICENSE,
    MARK,
    _data,
    _method,
    _summary,
    license_of,
    public,
    require_record,
)
from cls.commands.export.hub import check_access, upload
from cls.commands.export.run import export
from cls.commands.options import ExportOptions
from cls.config import NO_VALIDATION, Run, change, flat
from cls.evaluation.predictions import Predictions, write_parquet
from cls.evaluation.run_record import RunRecord
from cls.evaluation.trained_model import load_trained_model
from cls.runtime.files import sha256
from cls.runtime.signals import StopSignal
from cls.tracking.events import EventLog
from tests.harness import environment
from tests.harness.hub import TOKEN, Hub, serving
from tests.harness.untrained import CLASSES, member, photos

RECALLS = (1.0, 0.2, 0.6, 0.8)
"""Of each class, over five validation images."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose predictions are known, in a place whose name must stay here; weights from a local file."""
    home = tmp_path_factory.mktemp("alices-home")
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), home / "my-start.safetensors")
    model, track = (
        {"weights": str(home / "my-start.safetensors")},
        {"name": "alices-laptop", "project": "alices-thesis"},
    )
    augment = {"tta": ("identity", "hflip")}
    run = Path(member(home / "run", photos(home / "photos"), model=model, track=track, augment=augment))
    labels = np.repeat(np.arange(4), 5)
    right = np.concatenate([np.arange(5) < round(5 * recall) for recall in RECALLS])
    probs = np.eye(4)[np.where(right, labels, (labels + 1) % 4)] * 0.7 + 0.075
    known = Predictions(ids=[f"{i}.png" for i in range(20)], labels=labels, probs=probs, errors=[""] * 20,
                        classes=CLASSES, loss=1.0)  # fmt: skip
    start = {"step": 0, "processes": 1, "device": "CPU", "host": "alices-laptop", "began": 1.0}
    events = EventLog(run, 0)
    events.add("start", **start, weights_sha256=sha256(home / "my-start.safetensors"))
    events.close()
    (run / "predictions").mkdir()
    for name in ("val", "test"):
        write_parquet(run / "predictions" / f"{name}.parquet", known)
    return home


def test_the_card_says_what_is_known_and_nothing_of_this_machine(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = export(str(home / "run"), tmp_path / "to", ExportOptions(card=True, count=6), StopSignal())
    assert document["files"] == ["README.md", "config.json", "model.safetensors"]
    text = (tmp_path / "to" / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert card.data.license == LICENSE and f"license: {LICENSE}  # name one" in text
    assert card.data.metrics == ["accuracy"] and "image-classification" in card.data.tags
    assert [one.dataset_split for one in card.data.eval_results] == ["validation", "test"]
    low, high = proportion_confint(13, 20, method="wilson")
    for one in card.data.eval_results:
        assert (one.metric_type, one.metric_value) == ("accuracy", 0.65)
        assert one.metric_args == {"images": 20, "wilson_95": [round(low, 4), round(high, 4)]}
    assert "20 training, 20 validation, 20 test" in text and "ant, bee, cat, dog" in text
    assert f"a file `my-start.safetensors`, sha256 `{sha256(home / 'my-start.safetensors')}`" in text
    worst = [
        line.split("|")[1:3] for line in text.splitlines() if line.startswith(("| ant", "| bee", "| cat", "| dog"))
    ]
    expected = sorted(zip(CLASSES, RECALLS, strict=True), key=lambda pair: pair[1])
    assert [(name.strip(), float(recall)) for name, recall in worst] == expected
    with safe_open(tmp_path / "to" / "model.safetensors", framework="pt") as file:
        header = json.dumps(file.metadata())
    for written in (text, header, (tmp_path / "to" / "config.json").read_text()):
        assert "alice" not in written and str(tmp_path) not in written

    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tmp_path / "to", tmp_path / "elsewhere" / "exported")
    monkeypatch.chdir(tmp_path / "elsewhere")
    scope: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], scope)
    found = scope["probabilities"](home / "photos" / "test" / "bee" / "0.png")
    places = (str(home / "run"), "exported/model.safetensors")
    trained = [load_trained_model(place, "cpu", 0, StopSignal()) for place in places]
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours, theirs = (one.model(images) for one in trained)
    assert found.shape == (4,) and torch.equal(ours, theirs) and ours.std() > 1e-3


def test_the_card_says_what_chose_the_weights(home: Path, tmp_path: Path) -> None:
    def card(name: str, **data: Any) -> str:
        own = tmp_path / name
        if not own.exists():
            shutil.copytree(home / "run", own)
        trained = load_trained_model(str(own), "cpu", 0, StopSignal())
        trained = replace(trained, run=change(trained.run, data=data))
        return "".join(part(trained, RunRecord(own)) for part in (_summary, _data, _method))

    text = card("run")
    assert "also chose the epoch" in text and "this one training run" in text
    assert "* Validation: the data's own validation split where it has one, else 0.1 of the training images" in text
    text = card("run", hold_out="1/5")
    assert "* Validation: `data.hold_out 1/5` of the training images, stratified\n" in text
    text = card("all", hold_out="none")
    assert "chose the epoch" not in text and "this one training run" in text and "stratified" not in text
    assert f"* Validation: {NO_VALIDATION}" in text
    (tmp_path / "run" / "soup.json").write_text(json.dumps({"kept": ["a", "b", "c"]}))
    text = card("run")
    assert "average of several runs (soup of 3 runs), which were chosen on these validation images" in text
    assert "one training run" not in text and "* Average of the weights of several runs" in text


def test_a_license_stays_and_what_a_user_wrote_is_not_replaced(tmp_path: Path) -> None:
    assert license_of(tmp_path, True) == license_of(tmp_path, False) == LICENSE
    file = tmp_path / "README.md"
    file.write_text(f"---\nlicense: mit\ntags:\n- a\n---\n{MARK}\n")
    assert license_of(tmp_path, True) == "mit"
    with pytest.raises(ValueError, match="describes an earlier export: add --card True, or delete it"):
        license_of(tmp_path, False)
    file.write_text(f"---\nlicense: [mit\n---\n{MARK}\n")
    with pytest.raises(ValueError, match="its first lines are no YAML"):
        license_of(tmp_path, True)
    file.write_text("# My thesis\n")
    assert license_of(tmp_path, False) == LICENSE
    with pytest.raises(ValueError, match="was not written by cls export"):
        license_of(tmp_path, True)


def test_a_public_configuration_names_no_place() -> None:
    data = {"path": "alice/photos", "labels": ("/home/alice/a.csv",), "size": 48}
    run = change(Run(), out="/home/alice/run", data=data,
                 model={"weights": "/home/alice/old"}, track={"name": "alice"})  # fmt: skip
    known = flat(public(run))
    assert not any("alice" in str(value) for value in known.values())
    assert known["model.weights"] == "model.safetensors" and known["data.size"] == 48
    assert flat(public(change(run, data={"path": "digits"})))["data.path"] == "digits"
    assert flat(public(change(run, model={"weights": "DEFAULT"})))["model.weights"] == "DEFAULT"


# --- rejected before any work ---


def test_a_card_needs_figures(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "run" / "predictions" / "val.parquet").unlink()
    with pytest.raises(ValueError, match=r"val.parquet does not exist: let the run finish"):
        export(str(tmp_path / "run"), tmp_path / "to", ExportOptions(card=True), StopSignal())
    file = shutil.copy(home / "run" / "best" / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="--card needs a run directory"):
        require_record(load_trained_model(str(file), "cpu", 0, StopSignal()))
    command = Export(run=str(home / "run"), more=(str(home / "run"),), to=str(tmp_path / "to"),
                     options=ExportOptions(card=True))  # fmt: skip
    with pytest.raises(ValueError, match="--card and --push describe one network: export each run alone"):
        command.do(StopSignal())
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["name", "a/b/c", "a b/c", "/c", "a/", "https://hf.co/a/b", "../b", "-/é"])
def test_a_repository_is_user_and_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a repository of the hub: write USER/NAME"):
        ExportOptions(push=name)


def test_public_is_for_push() -> None:
    assert ExportOptions(push="some-one/a_b.c", public=True).with_card and not ExportOptions().with_card
    with pytest.raises(ValueError, match="--public is for --push"):
        ExportOptions(public=True)


# --- a hub ---


def test_access_is_checked_before_any_work(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private = {"someone/open": False, "someone/closed": True}
    check_access("someone/new", False)
    check_access("someone/open", True)
    check_access("someone/closed", False)
    assert not [request for request in hub.requests if request.startswith("POST")]
    with pytest.raises(ValueError, match="exists and is public: add --public True, or name another one"):
        check_access("someone/open", False)
    with pytest.raises(ValueError, match="exists and is private: leave out --public"):
        check_access("someone/closed", True)
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(ValueError, match=r"does not take the token \(.*\): run hf auth login"):
        check_access("someone/new", False)
    monkeypatch.delenv("HF_TOKEN")
    before = len(hub.requests)
    with pytest.raises(ValueError, match="needs a token of the hub that may write: run hf auth login, or set HF_TOKEN"):
        check_access("someone/new", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        check_access("someone/new", False)
    assert len(hub.requests) == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match="needs a token"):  # before it looks for the run
        export("no-run", tmp_path / "to", ExportOptions(push="someone/new"), StopSignal())
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_the_export_are_uploaded_and_no_others(hub: Hub, tmp_path: Path) -> None:
    tmp_path = tmp_path / "my exports"
    tmp_path.mkdir()
    for name in ("config.json", "README.md", "model.safetensors", "diary.txt"):
        (tmp_path / name).write_text(f"{MARK} {name}")
    names = ["README.md", "config.json", "model.safetensors"]
    assert upload(tmp_path, names, "someone/new", False) == f"{hub.address}/someone/new"
    assert hub.private == {"someone/new": True} and sorted(hub.files["someone/new"]) == names
    assert hub.files["someone/new"]["config.json"] == (tmp_path / "config.json").read_bytes()
    hub.files["someone/new"] |= {"model.onnx": b"old", "notes.md": b"by hand"}
    (tmp_path / "config.json").write_text("another")
    upload(tmp_path, names, "someone/new", False)
    assert sorted(hub.files["someone/new"]) == sorted([*names, "notes.md"])
    assert hub.files["someone/new"]["config.json"] == b"another"
    upload(tmp_path, names, "someone/open", True)
    assert not hub.private["someone/open"]
    hub.full = True
    (tmp_path / "config.json").write_text("a third")
    with pytest.raises(ValueError, match=r"not uploaded \(.*\); again: hf upload") as caught:
        upload(tmp_path, names, "someone/new", False)
    words = shlex.split(str(caught.value).rpartition("again: ")[2])
    only = ["--include", "README.md", "--include", "config.json", "--include", "model.safetensors"]
    assert words == ["hf", "upload", "someone/new", str(tmp_path), ".", *only, "--private"]


@pytest.mark.integration
def test_export_pushes_to_a_hub(home: Path, tmp_path: Path) -> None:
    """The command as a user types it."""
    command = [sys.executable, "-m", "cls", "export", str(home / "run"), "--to", str(tmp_path / "to"), "--count", "4",
               "--push", "someone/pets", "--json"]  # fmt: skip
    with serving() as hub:
        given = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            command, env=environment(**given, HF_TOKEN=TOKEN), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["hub"] == f"{hub.address}/someone/pets" and hub.private == {"someone/pets": True}
    sent = hub.files["someone/pets"]
    assert sorted(sent) == document["files"] == ["README.md", "config.json", "model.safetensors"]
    assert all((tmp_path / "to" / name).read_bytes() == data for name, data in sent.items())
    assert not any(b"alice" in data or TOKEN.encode() in data for data in sent.values())
    assert TOKEN not in done.stdout + done.stderr
    card = ModelCard(sent["README.md"].decode())
    assert card.data.model_name == "pets" and "hf download someone/pets --local-dir pets" in card.text
