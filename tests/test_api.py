"""The Python API: the answers of the commands, in a program that keeps its own settings; and in a real notebook."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import cls
from cls import recipes
from cls.commands.export.run import export
from cls.commands.options import ExportOptions, PredictOptions
from cls.commands.parsing import parse_run
from cls.commands.predict import predict_images
from cls.evaluation.predictions import read_parquet
from cls.evaluation.trained_model import network
from cls.runtime.files import new_directory
from cls.runtime.signals import StopSignal
from cls.tracking.run_status import read_exit, written
from tests.harness import ROOT, environment
from tests.harness.untrained import CLASSES, member, photos

SMALL = {"data": {"size": 16}, "model": {"backbone": "timm/test_resnet", "weights": "none"},
         "train": {"batch": 8, "micro_batch": 8}, "track": {"wandb": "disabled"}}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("api") / "photos")


@pytest.fixture(scope="module")
def run(images: Path) -> str:
    return member(images.parent / "run", images)


@pytest.fixture(scope="module")
def model(run: str) -> cls.Model:
    return cls.load(run)


def files(images: Path) -> list[Path]:
    return sorted((images / "val").rglob("*.png"))


def picture(images: Path) -> Image.Image:
    return Image.open(files(images)[0])


# --- what it costs, and what it leaves behind ---


def test_importing_it_loads_no_library() -> None:
    code = (
        "import cls, sys; assert set(cls.__all__) < set(dir(cls)); "
        "assert not {'torch', 'datasets', 'numpy', 'cls.config'} & set(sys.modules); "
        "cls.train; cls.compare; cls.api.load; assert not {'torch', 'datasets', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(PYTHONPATH=str(ROOT)))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cls' has no attribute 'fit'"):
        cls.fit  # type: ignore[attr-defined]  # noqa: B018  # it is not there


def test_the_stub_has_all_names() -> None:
    stub = (ROOT / "cls" / "__init__.pyi").read_text()
    assert set(re.findall(r"import (\w+) as \1\b", stub)) == set(cls.__all__)


def settings() -> tuple[Any, ...]:
    return (
        torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
        torch.is_deterministic_algorithms_warn_only_enabled(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # mypy cannot see it
        torch.random.get_rng_state().sum().item(), np.random.get_state()[1][:3].tolist(),  # type: ignore[index]  # or a dictionary, in numpy's types
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
    )  # fmt: skip


def test_the_settings_of_other_libraries_stay(run: str, images: Path) -> None:
    """In a process of its own: here the modules that set them are loaded."""
    code = f"""
import logging, os, warnings, cv2, torch, torchvision, timm, cls
def settings():
    return (cv2.getNumThreads(), logging.getLogger("PIL").level, list(warnings.filters), dict(os.environ), os.getcwd())
cv2.setNumThreads(2)
before = settings()
model = cls.load({run!r})
assert settings() == before, (settings(), before)
model.predict({str(files(images)[0])!r}), model.embed({str(files(images)[0])!r})
assert settings() == before, (settings(), before)
"""
    subprocess.run([sys.executable, "-c", code], env=environment(PYTHONPATH=str(ROOT)), check=True)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_settings_of_the_program_stay(run: str, images: Path, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    mine = settings()
    try:
        model = cls.load(run)
        assert settings() == mine
        model.predict(images)
        assert settings() == mine
        model.embed(images)
        with pytest.raises(ValueError, match="cannot be read"):
            model.predict("missing.png")
        assert settings() == mine
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def test_the_number_of_threads_does_not_change_the_bits(model: cls.Model, images: Path) -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        found.append(model.predict(images))
    torch.set_num_threads(before)
    assert found[0] == found[1]


# --- the answers ---


@pytest.mark.parametrize("given", ["folder", "paths", "strings"])
def test_many_images_have_the_bits_of_the_command(
    model: cls.Model, run: str, images: Path, tmp_path: Path, given: str
) -> None:
    some = images / "val" if given == "folder" else [f if given == "paths" else str(f) for f in files(images)]
    options = PredictOptions(out=str(tmp_path / "out"), device="cpu", workers=2)
    paths = [str(some)] if given == "folder" else [*map(str, some)]  # type: ignore[call-overload]  # a list here
    predict_images([run], paths, options, StopSignal())
    torch.use_deterministic_algorithms(False)
    theirs, ours = read_parquet(tmp_path / "out" / "predictions.parquet"), model.predict(some, top_k=4)
    assert [one.image for one in ours] == theirs.ids and len(ours) == 20
    for one, probs in zip(ours, theirs.probs, strict=True):
        assert dict(one.top) == dict(zip(CLASSES, probs.tolist(), strict=True))
        assert (one.label, one.probability) == one.top[0] == max(one.top, key=lambda pair: pair[1])
    assert len({one.label for one in ours}) > 1


def test_one_image_agrees_with_the_list(model: cls.Model, images: Path) -> None:
    for file, one in zip(files(images), model.predict(files(images)), strict=True):
        alone = model.predict(file)
        assert alone.label == one.label and alone.image == str(file) and abs(alone.probability - one.probability) < 1e-6


def test_pixels_are_predicted_like_their_file(model: cls.Model, images: Path) -> None:
    image = picture(images)
    expected = model.predict(files(images)[0])
    for same in (image, np.asarray(image), torch.from_numpy(np.array(image))):
        found = model.predict(same)
        assert (found.label, found.top) == (expected.label, expected.top) and found.image == "0"
    batch = np.stack([np.asarray(Image.open(file)) for file in files(images)])
    assert [one.top for one in model.predict(batch)] == [one.top for one in model.predict(files(images))]


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK", "I;16", "F", "YCbCr", "HSV"])
def test_every_mode_of_pillow_is_taken(model: cls.Model, images: Path, tmp_path: Path, mode: str) -> None:
    image = picture(images)
    image = image.convert("L").convert("I").convert(mode) if mode in ("I;16", "F") else image.convert(mode)
    if mode in ("L", "RGBA", "LA", "P", "1", "I;16"):
        image.save(tmp_path / "same.png")
        assert model.predict(image).top == model.predict(tmp_path / "same.png").top
    assert model.predict(image).probability > 0


def test_an_image_with_an_orientation_is_turned(model: cls.Model, images: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(images).save(tmp_path / "turned.png", exif=exif)
    turned = model.predict(Image.open(tmp_path / "turned.png"))
    assert turned.top == model.predict(tmp_path / "turned.png").top != model.predict(picture(images)).top


def test_views_change_the_probability(model: cls.Model, images: Path) -> None:
    file = files(images)[0]
    plain, flipped = model.predict(file), model.predict(file, views=("identity", "hflip"))
    mirrored = model.predict(picture(images).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    mean = {name: (dict(plain.top)[name] + dict(mirrored.top)[name]) / 2 for name in CLASSES}
    assert dict(flipped.top) == pytest.approx(mean) != dict(plain.top)


def test_features_are_what_the_output_layer_receives(model: cls.Model, images: Path) -> None:
    features = model.embed(files(images))
    assert features.shape == (20, 96) and features.dtype == np.float32 and model.embed(files(images)[3]).shape == (96,)
    np.testing.assert_allclose(model.embed(files(images)[3]), features[3], rtol=1e-5, atol=1e-6)
    layer = model.network.fc
    logits = torch.from_numpy(features) @ layer.weight.T + layer.bias  # type: ignore[operator, union-attr]  # Module has any attribute
    probabilities = logits.detach().softmax(1).numpy()  # type: ignore[attr-defined]  # as above
    for row, one in enumerate(model.predict(files(images))):
        assert dict(one.top) == pytest.approx(dict(zip(CLASSES, probabilities[row].tolist(), strict=True)), abs=1e-6)


def test_a_corrupt_image_is_an_error_alone_and_a_row_among_others(
    model: cls.Model, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    good, bad = model.predict([files(images)[0], tmp_path / "bad.jpg"])
    assert good.error == "" and bad.label == "" and bad.top == () and "not an image" in bad.error
    assert np.isnan(bad.probability)
    for call in (model.predict, model.embed):
        with pytest.raises(ValueError, match=r"bad\.jpg: not an image"):
            call(tmp_path / "bad.jpg")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        model.embed([files(images)[0], tmp_path / "bad.jpg"])


WRONG = {
    "floats": (np.zeros((8, 8, 3)), "expected uint8 from 0 to 255"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), "channels must come last"),
    "four channels": (np.zeros((8, 8, 4), np.uint8), "expected h w or h w 3"),
    "no pixels": (np.zeros((0, 8, 3), np.uint8), "expected h w or h w 3"),
    "a number": (3, "shape \\(\\)"),
    "nothing": ([], "the list is empty"),
    "a missing folder": ("missing", "no file or folder missing"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_image_is_rejected(model: cls.Model, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict(given)


def test_other_containers_are_lists(model: cls.Model, images: Path) -> None:
    expected = model.predict(files(images)[:3])
    assert model.predict(path for path in files(images)[:3]) == expected
    assert sorted(model.predict(set(files(images)[:3])), key=lambda one: one.image) == expected


def test_an_image_of_pillow_that_cannot_be_read_is_a_row(
    model: cls.Model, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = io.BytesIO()
    picture(images).convert("RGB").resize((200, 200)).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:900])
    cut, good = Image.open(tmp_path / "cut.jpg"), files(images)[0]
    first, second, third = model.predict([cut, good, Image.new("RGB", (0, 0))])
    assert first.error and not first.label and third.error
    assert dict(second.top) == pytest.approx(dict(model.predict(good).top), abs=1e-6)
    assert "image 0: image file is truncated" in caplog.text
    with pytest.raises(ValueError, match="0: empty file"):
        model.predict(Image.open(tmp_path / "cut.jpg"))
    with pytest.raises(ValueError, match="the path is empty"):
        model.predict("")


def test_bad_arguments_are_rejected(model: cls.Model, run: str, images: Path) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, found 0"):
        model.predict(files(images), top_k=0)
    for views in (("flip",), "hflip"):
        with pytest.raises(ValueError, match=r"views is .*: give a list of identity, hflip, rotate, crop"):
            model.predict(files(images), views=views)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="device is 'gpu'"):
        cls.load(run, device="gpu")
    with pytest.raises(ValueError, match="name a run directory"):
        cls.load(images)
    with pytest.raises(ValueError, match="split is 'train'"):
        cls.compare([run], split="train")  # type: ignore[arg-type]  # on purpose


# --- which models ---


def test_a_run_its_file_and_an_export_are_the_same_model(
    model: cls.Model, run: str, images: Path, tmp_path: Path
) -> None:
    export(run, tmp_path / "exported", ExportOptions(format=("safetensors",), count=4), StopSignal())
    torch.use_deterministic_algorithms(False)
    expected = model.predict(files(images))
    for place in (Path(run), Path(run) / "best" / "model.safetensors", tmp_path / "exported"):
        other = cls.load(place)
        assert other.predict(files(images)) == expected and other.classes == CLASSES
    shutil.move(tmp_path / "exported", tmp_path / "moved")
    assert cls.load(tmp_path / "moved", device="cpu").predict(files(images)) == expected
    weights, theirs = network(tmp_path / "moved" / "model.safetensors").state_dict(), model.network.state_dict()
    assert all(weights[name].equal(value) for name, value in theirs.items())
    assert model.run.data.size == 16 and run in repr(model) and "4 classes on cpu" in repr(model)


def test_a_run_beside_an_export_is_the_run(run: str, images: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.copy(Path(member(tmp_path / "other", images, seed=1)) / "best" / "model.safetensors", own)
    assert cls.load(own).predict(files(images)) == cls.load(run).predict(files(images))


def test_several_models_give_their_mean(model: cls.Model, run: str, images: Path, tmp_path: Path) -> None:
    other = member(tmp_path / "other", images, seed=1)
    both, single = cls.load(run, other), cls.load(other)
    file = files(images)[0]
    first, second, mean = (dict(one.predict(file).top) for one in (model, single, both))
    assert dict(cls.load([run, other]).predict(file).top) == mean
    assert mean == pytest.approx({name: (first[name] + second[name]) / 2 for name in CLASSES}) and first != second
    for what in (lambda: both.embed(file), lambda: both.network):
        with pytest.raises(ValueError, match="is of one model, and 2 were loaded"):
            what()


# --- real runs ---

ANOTHER_SEED = """
import pathlib, shutil
stored = pathlib.Path(shutil.copytree(run, "runs/other"), "config.yaml")
stored.write_text(stored.read_text().replace("seed: 0", "seed: 1"));
"""


@pytest.mark.integration
def test_the_lines_of_the_readme_in_a_notebook(images: Path, tmp_path: Path) -> None:
    """Executed by a real kernel; only the network, its size and the number of epochs are small."""
    (code,) = re.findall(r"```python\n(import cls\n.*?)```", (ROOT / "README.md").read_text(), re.S)
    shutil.copytree(images, tmp_path / "photos")
    Image.open(files(images)[0]).save(tmp_path / "cat.jpg")
    small = f'"digits", **{SMALL | {"data": {"path": "photos", **SMALL["data"]}}}'
    code, count = re.subn(r'"mlp-head", data="photos"', small, code)
    assert count == 1
    lines = code.strip().splitlines()
    lines[-1:] = [ANOTHER_SEED, lines[-1], "run", "model.run.train.epochs"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in lines])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        done = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {cell.source.partition("#")[0].strip(): cell.outputs for cell in done.cells}
    last = next(iter(reversed(shown)))
    assert shown[last][0]["data"]["text/plain"] == "3"
    (made,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "other")
    assert made.name in shown["run"][0]["data"]["text/plain"] and read_exit(made).outcome == "done"
    said = "".join(output.get("text", "") for cell in done.cells for output in cell.outputs)
    assert "epoch 3/3 done" in said  # as it came
    label = eval(shown['model.predict("cat.jpg").label'][0]["data"]["text/plain"])
    assert label in CLASSES
    assert "accuracy" in json.dumps(shown['cls.compare([run, "runs/other"])'][0]["data"]["text/markdown"])


@pytest.mark.integration
def test_an_interrupt_saves_and_the_same_call_resumes(images: Path, tmp_path: Path) -> None:
    small = SMALL | {"data": {"path": str(images), **SMALL["data"]}}
    code = (
        f"import cls\ntry:\n    print(cls.train('digits', epochs=60, out='run', **{small}))\n"
        "except KeyboardInterrupt:\n    print('interrupted')"
    )
    command, env = [sys.executable, "-c", code], environment(PYTHONPATH=str(ROOT))
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not written(tmp_path / "run" / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        said = process.communicate(timeout=120)[0]
    assert said.endswith("interrupted\n") and read_exit(tmp_path / "run").outcome == "stopped"
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    done = subprocess.run(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "run" and read_exit(tmp_path / "run").outcome == "done"


@pytest.mark.integration
def test_a_run_whose_caller_is_killed_saves(images: Path, tmp_path: Path) -> None:
    """As by a notebook's restart: nobody reads its output any more."""
    small = SMALL | {"data": {"path": str(images), **SMALL["data"]}}
    code = f"import cls; cls.train('digits', epochs=9000, out='run', **{small})"
    env = environment(PYTHONPATH=str(ROOT))
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as caller:
        waiting(lambda: written(tmp_path / "run" / "checkpoints"))
        caller.kill()
    waiting(lambda: (tmp_path / "run" / "exit.json").exists())
    ended = read_exit(tmp_path / "run")
    assert (ended.outcome, ended.reason) == ("stopped", "nobody reads the output any more")
    steps = [int(path.name.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert max(steps) == json.loads((tmp_path / "run" / "exit.json").read_text())["step"] > 0


def waiting(until: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_new_directory_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two trainings that start in one second, each has its own; one that fails removes its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    theirs = tmp_path / "runs" / "digits-20260101-000000"
    theirs.mkdir(parents=True)
    with pytest.raises(RuntimeError, match="runs/digits-20260101-000000-2 ended with error"):
        cls.train("digits", launch="false")
    assert list(theirs.parent.iterdir()) == [theirs]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_directory(theirs), range(64)))
    assert len(set(made)) == 64 and all(path.is_dir() for path in made)


@pytest.mark.integration
def test_a_run_that_fails_is_an_error_with_its_reason(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^data\.path: .*\./missing"):
        cls.train("digits", data="./missing")
    assert not list(tmp_path.glob("runs/*"))  # nobody named it
    with pytest.raises(ValueError, match="name the images"):
        cls.train("mlp-head")
    assert "name the images" in capfd.readouterr().out


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "a section": ({"optm": {"lr": 1}}, "unknown field optm; did you mean optim"),
    "a field": ({"optim": {"lrr": 1}}, "unknown field optim.lrr; did you mean optim.lr"),
    "a type": ({"optim": {"lr": "high"}}, "optim.lr"),
    "a range": ({"optim": {"lr": -1.0}}, "optim.lr"),
    "a recipe": ({"recipe": "mlp-had"}, "did you mean mlp-head"),
    "no fields": ({"train": 5, "epochs": 3}, "train is 5: give its fields"),
    "no section": ({"lr": 0.001}, r"lr is a field of optim: give optim={'lr': 0\.001}"),
    "a launcher": ({"launch": "no-such-program"}, "no program 'no-such-program'"),
    "a script": ({"script": "missing.py"}, "missing.py"),
}


@pytest.mark.parametrize(("given", "message"), FIELDS.values(), ids=FIELDS)
def test_fields_are_checked_before_a_process_starts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.train(**given)


def test_what_is_not_given_is_the_recipes_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("cls.api._follow", lambda command, lines: started.append(command) or 0)
    cls.train("mlp-head", data=tmp_path, out=tmp_path / "x")
    assert recipes.get("mlp-head").seed == 63 and "--seed" not in started[0]
    assert parse_run(started[0][2:]).seed == 63
    cls.train("mlp-head", data=tmp_path, out=tmp_path / "x", seed=0)
    assert parse_run(started[1][2:]).seed == 0
    with pytest.raises(ValueError, match=r"no recipe is named: cls.train\('mlp-head'"):
        cls.train(data=tmp_path)
    with pytest.raises(ValueError, match="give one of them"):
        cls.train("digits", epochs=3, train={"epochs": 4})
    assert len(started) == 2


def test_values_of_numpy_and_paths_are_fields(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("cls.api._follow", lambda command, lines: started.append(command) or 0)
    cls.train("digits", optim={"betas": np.array([0.8, 0.9])}, out=tmp_path / "x")
    assert started.pop()[-3:] == ["--optim.betas", "0.8", "0.9"]
    given = {"size": np.int64(64), "path": tmp_path}
    assert cls.train("digits", data=given, optim={"lr": np.float32(0.5)}, out=tmp_path / "x") == tmp_path / "x"
    (command,) = started
    assert Path(command[0]).name == "python" and command[1:3] == [str(ROOT / "train.py"), "digits"]
    words = dict(zip(command[3::2], command[4::2], strict=True))
    assert words == {
        "--out": str(tmp_path / "x"),
        "--data.path": str(tmp_path),
        "--data.size": "64",
        "--optim.lr": "0.5",
    }
