"""``cls export``: other libraries give the run's logits on real photos, from the lines that are shown."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors import safe_open

from cls.commands.arguments import Export
from cls.commands.export import run as export_run
from cls.commands.export.onnx import require_packages
from cls.commands.export.run import LIMIT, export
from cls.commands.export.snippets import expressible, plain
from cls.commands.export.timm_config import preprocessing
from cls.commands.options import ExportOptions, Format, PredictOptions
from cls.commands.predict import predict_images
from cls.config import Data, Model
from cls.data.dataset import EvalDataset, ViewDataset
from cls.data.loader import load_batch
from cls.data.readers import images_of
from cls.data.sources import load_images
from cls.evaluation.predictions import read_parquet
from cls.evaluation.trained_model import load_trained_model
from cls.runtime.signals import StopSignal
from cls.transforms.ops import view_ops
from tests.harness import ROOT, environment
from tests.harness.untrained import untrained

CLASSES = 7
OURS: dict[str, Any] = {
    "backbone": "resnext14_8x8d", "cbam": (1, 2, 3, 4), "gate": 9, "head": "20 bn silu dropout:0.3", "dropout3": 0.5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Loading a run chooses them for its process, which here is that of other tests, too."""
    yield
    torch.use_deterministic_algorithms(False)


def exported(
    place: Path, clothing: Path, model: dict[str, Any], *formats: Format, size: int = 64, count: int = 11, **more: Any
) -> dict[str, Any]:
    untrained(place / "run", CLASSES, {"size": 40, "eval_size": size}, model)  # trained at 40, used at size
    options = ExportOptions(format=formats or ("safetensors",), images=str(clothing / "test"), count=count, **more)
    return export(str(place / "run"), place / "it's exported", options, StopSignal())


@pytest.mark.parametrize(
    ("model", "library"),
    [
        ({"backbone": "resnet18"}, "torchvision"),
        ({"backbone": "resnet18", "head": "500 bn relu dropout:0.5 30 silu", "dropout3": 0.4}, "torchvision"),
        ({"backbone": "resnext14_8x8d"}, "torchvision"),
        ({"backbone": "timm/test_resnet", "freeze": ("layer1",)}, "timm"),
        ({"backbone": "timm/test_convnext", "head": "20 relu"}, "timm"),  # its output layer is head.fc
        (OURS, "cls"),
    ],
)
def test_the_shown_lines_load_the_network(tmp_path: Path, clothing: Path, model: dict[str, Any], library: str) -> None:
    """The command has run them; here they run again in the final folder, whose name needs quoting."""
    document = exported(tmp_path, clothing, model)
    assert list(document["differences"]) == [library] and document["differences"][library] <= LIMIT
    assert document["images"] == 11 and document["files"] == ["config.json", "model.safetensors"]
    text = document["python"]["safetensors"]
    assert f"import {library}" in text or f"from {library}" in text
    assert sum(not line.startswith(("import", "from", "transform")) for line in text.splitlines()) <= 3
    scope: dict[str, Any] = {}
    exec(text, scope)
    assert not scope["model"].training
    trained = load_trained_model(str(tmp_path / "run"), "cpu", 0, StopSignal())
    photo = Image.open(sorted((clothing / "test").iterdir())[0]).convert("RGB")
    images = scope["transform"](photo)[None]
    assert images.shape == (1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = trained.model(images), scope["model"](images)
    assert ours.std() > 1e-3 and (ours - theirs).abs().max() <= LIMIT
    with safe_open(document["folder"] + "/model.safetensors", framework="pt") as file:
        assert "config" in file.metadata()  # cls predict takes it, too


@pytest.mark.integration
def test_the_shown_lines_average_several_runs(tmp_path: Path, clothing: Path) -> None:
    """Two networks, two libraries, two sizes, two orders of the classes; the code runs in the final folder."""
    orders = [tuple(f"class {i}" for i in order) for order in ((0, 1, 2, 3), (2, 0, 3, 1))]
    for name, classes, size, backbone in zip("ab", orders, (32, 48), ("resnet18", "timm/test_resnet"), strict=True):
        untrained(tmp_path / name, classes, {"size": size}, {"backbone": backbone})
    options = ExportOptions(images=str(clothing / "test"), count=5)
    command = Export(run=str(tmp_path / "a"), more=(str(tmp_path / "b"),), to=str(tmp_path / "to"), options=options)
    document, _ = command.do(StopSignal())
    assert [Path(one["folder"]).name for one in document["members"]] == ["member-1", "member-2"]
    index = json.loads((tmp_path / "to" / "ensemble.json").read_text())
    assert index["classes"] == [*orders[0]] and index["rule"] == "mean of softmax"
    assert [row["run"] for row in index["members"]] == [str(tmp_path / name) for name in "ab"]
    scope: dict[str, Any] = {}
    found: list[np.ndarray] = []
    exec(document["python"], scope)
    photo = ImageOps.exif_transpose(Image.open(sorted((clothing / "test").iterdir())[0])).convert("RGB")
    expected = np.zeros(4)
    for name, classes, (_, transform, _) in zip("ab", orders, scope["members"], strict=True):
        trained = load_trained_model(str(tmp_path / name), "cpu", 0, StopSignal())
        with torch.no_grad():
            own = trained.model(transform(photo)[None]).softmax(1)[0]
        expected += [float(own[classes.index(label)]) / 2 for label in orders[0]]
    assert scope["probabilities"](photo).numpy() == pytest.approx(expected, abs=1e-5) and expected.std() > 1e-3

    out = PredictOptions(out=str(tmp_path / "out"), device="cpu", workers=0)
    for models in ([str(tmp_path / "to")], [str(tmp_path / name) for name in "ab"]):
        predict_images(models, [str(clothing / "test")], out, StopSignal())
        found.append(read_parquet(tmp_path / "out" / "predictions.parquet").probs)
    assert found[0].tobytes() == found[1].tobytes()  # the folder is used like the runs

    untrained(tmp_path / "other", 5, {"size": 32}, {"backbone": "resnet18"})
    with pytest.raises(ValueError, match=r"other classes \(only the second has 'class 4'\)"):
        replace(command, more=(str(tmp_path / "other"),), to=str(tmp_path / "new")).do(StopSignal())
    assert not (tmp_path / "new").exists()


def test_cls_predicts_with_an_exported_file(tmp_path: Path, clothing: Path) -> None:
    document = exported(tmp_path, clothing, {"backbone": "timm/test_resnet"})
    rows = load_images(str(clothing / "test"), Data()).select(range(5))
    found = []
    for path in (str(tmp_path / "run"), document["folder"] + "/model.safetensors"):
        trained = load_trained_model(path, "cpu", 0, StopSignal())
        found.append(trained.predict(EvalDataset(rows, (), trained.run)).probs)
    assert np.array_equal(*found) and found[0].std() > 0


@pytest.mark.integration
def test_what_a_killed_export_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """Whether the place existed or not; the folders of live exports and of other users stay."""
    program = (
        "import sys, time; from pathlib import Path; from cls.commands.export.run import aside_of\n"
        "with aside_of(Path(sys.argv[1])) as aside:\n    (aside / 'model.onnx').touch(); print(aside, flush=True)\n"
        "    time.sleep(100)"
    )

    def started(to: Path) -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen([sys.executable, "-c", program, str(to)], stdout=subprocess.PIPE, text=True,
                                   env=environment(PYTHONPATH=str(ROOT)))  # fmt: skip
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    (tmp_path / ".to-mine").mkdir()
    (tmp_path / ".to-mine" / "thesis.tex").touch()
    living, kept = started(tmp_path / "to")
    killed, left = started(tmp_path / "to")
    try:
        assert left.parent == tmp_path and left.is_dir()
        killed.kill()
        killed.wait()
        assert left.is_dir()
        with export_run.aside_of(tmp_path / "to") as aside:
            assert aside.is_dir() and not left.exists() and kept.is_dir()
        assert not aside.exists() and (tmp_path / ".to-mine" / "thesis.tex").exists()
        (tmp_path / "to").mkdir()
        with export_run.aside_of(tmp_path / "to") as aside:
            assert aside.parent == tmp_path / "to"  # its parent may be another person's
        assert list((tmp_path / "to").iterdir()) == []
    finally:
        living.kill()
        living.wait()


@pytest.mark.soak
def test_a_graph_of_all_our_parts_takes_pixels(tmp_path: Path, clothing: Path) -> None:
    """CBAM, gate, head and dropout; any batch size; all that a program must know is in the file."""
    import onnxruntime

    document = exported(tmp_path, clothing, OURS, "onnx", size=32, input="uint8")
    assert document["differences"]["onnxruntime"] <= LIMIT and document["files"] == ["config.json", "model.onnx"]
    session = onnxruntime.InferenceSession(document["folder"] + "/model.onnx")
    stated = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert stated["label_names"] == [f"class {i}" for i in range(CLASSES)] and stated["input"] == "uint8"
    assert (stated["input_size"], stated["crop_pct"], stated["crop_mode"]) == ([3, 32, 32], 32 / 37, "center")
    assert stated["mean"] == [0.5, 0.5, 0.5] and stated["interpolation"] == "bilinear"
    trained = load_trained_model(str(tmp_path / "run"), "cpu", 0, StopSignal())
    images, pixels = export_run.photos(trained, load_images(str(clothing / "test"), trained.run.data), 6)
    for batch in (1, 6):
        scope: dict[str, Any] = {"pixels": pixels[:batch].numpy()}
        exec(document["python"]["onnx"], scope)
        with torch.no_grad():
            ours = trained.model(images[:batch])
        assert scope["logits"].shape == (batch, CLASSES) and np.abs(scope["logits"] - ours.numpy()).max() <= LIMIT
        assert ours.std() > 1e-3


@pytest.mark.parametrize(
    ("data", "resized"), [({"size": 64}, 73), ({"size": 96}, 110), ({"size": 50, "eval_frame": "squash"}, 50)]
)
def test_timm_frames_the_photos_as_the_run_does(clothing: Path, data: dict[str, Any], resized: int) -> None:
    """96 / 0.875 = 109.7: the run rounds to 110 where timm's own crop_pct would give 109."""
    config = Data(**data, exact_order=True)
    facts = preprocessing(config, ((0.2, 0.3, 0.4), (0.5, 0.6, 0.7)))
    known = timm.data.resolve_data_config(pretrained_cfg=facts)
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in known.items()} == facts
    transform = timm.data.create_transform(**known, normalize=False)
    assert transform.transforms[0].size in (resized, (resized, resized))
    rows = load_images(str(clothing / "test"), config).select(range(12))
    ours = load_batch(
        ViewDataset(images_of(rows), view_ops("identity", config), config.size, 0, "identity", True), range(12)
    )
    files = [clothing / "test" / name for name in rows["id"]]
    theirs = torch.stack([transform(ImageOps.exif_transpose(Image.open(file)).convert("RGB")) for file in files])
    assert (ours.pixels.int() - theirs.int()).abs().max() <= 1
    wider = transform.transforms[0].__class__(resized - 1)  # what the smallest mistake would do
    other = torch.stack([transform(wider(Image.open(file).convert("RGB"))) for file in files])
    assert (ours.pixels.int() - other.int()).abs().max() > 20


def test_a_field_that_other_libraries_do_not_know_makes_a_network_ours() -> None:
    assert plain(Model(backbone="resnet18")) and not plain(Model(head="5"))
    assert expressible(Model(head="5", dropout3=0.5, freeze=("stem",), weights="none"))
    assert not expressible(Model(gate=3)) and not expressible(Model(cbam=(2,)))


# --- refusals ---


def test_other_logits_are_an_error(tmp_path: Path) -> None:
    ours = torch.randn(4, 3)
    for theirs in (ours + 2 * LIMIT, ours * float("nan"), ours[:, :2]):
        with pytest.raises(ValueError, match="timm gives other logits than the run's network"):
            export_run._difference("timm", lambda some, wrong=theirs: wrong[: len(some)], ours, ours, 4)
    assert export_run._difference("timm", lambda some: some + LIMIT / 2, ours, ours, 3) == pytest.approx(
        LIMIT / 2, rel=0.1
    )


def test_without_real_images_nothing_is_written(tmp_path: Path) -> None:
    untrained(
        tmp_path / "run", CLASSES, {"size": 32, "path": str(tmp_path / "missing")}, {"backbone": "timm/test_resnet"}
    )
    to, bad = tmp_path / "to", tmp_path / "bad"
    bad.mkdir()
    (bad / "a.jpg").write_text("no photo")
    with pytest.raises(ValueError, match=r"missing; the export is verified on real images: name some with --images"):
        export(str(tmp_path / "run"), to, ExportOptions(), StopSignal())
    with pytest.raises(ValueError, match="no image could be read"):
        export(str(tmp_path / "run"), to, ExportOptions(images=str(bad)), StopSignal())
    with pytest.raises(ValueError, match="is a file; name a folder"):
        export(str(tmp_path / "run"), bad / "a.jpg", ExportOptions(), StopSignal())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "run"]
    with pytest.raises(ValueError, match="holds the exported run's own weights"):
        export(str(tmp_path / "run"), tmp_path / "run" / "best", ExportOptions(), StopSignal())
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages()
    monkeypatch.setattr("cls.commands.export.onnx.PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match="--format onnx needs no_such_package: pip install no_such_package"):
        require_packages()


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="--format is empty"):
        ExportOptions(format=())
    with pytest.raises(ValueError, match="--count must be at least 1, found 0"):
        ExportOptions(count=0)


@pytest.mark.soak
@pytest.mark.parametrize("backbone", ["timm/tf_efficientnet_lite0", "resnet50"])
def test_another_program_computes_the_logits_of_100_photos(tmp_path: Path, clothing: Path, backbone: str) -> None:
    """At 224 px, real weights where there are some: a fresh process with the shown lines, and no unpickling."""
    weights = clothing.parents[1] / "weights" / "tf_efficientnet_lite0.safetensors"
    model = {"backbone": backbone, "weights": str(weights) if "lite0" in backbone else "none"}
    untrained(tmp_path / "run", 10, {"size": 224}, model)
    command = [sys.executable, "-m", "cls", "export", str(tmp_path / "run"), "--to", str(tmp_path / "to"), "--json"]
    command += ["--format", "safetensors", "onnx", "--images", str(clothing / "test")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["images"] == 100 and len(document["differences"]) == 2
    assert max(document["differences"].values()) <= LIMIT
    trained = load_trained_model(str(tmp_path / "run"), "cpu", 0, StopSignal())
    images, _ = export_run.photos(trained, load_images(str(clothing / "test"), trained.run.data), 100)
    with torch.no_grad():
        ours = torch.cat([trained.model(some) for some in torch.split(images, 10)]).numpy()
    assert ours.shape == (100, 10) and ours.std(0).min() > 1e-3
    np.save(tmp_path / "images.npy", images.numpy())
    script = (
        f"import numpy as np, pickle, torch\n{document['python']['safetensors']}\n"
        f"pickle.Unpickler = pickle.load = pickle.loads = torch.load = None\n"
        f"every = np.load({str(tmp_path / 'images.npy')!r})\n"
        "with torch.no_grad():\n"
        "    theirs = np.concatenate([model(torch.from_numpy(every[i:i + 10])).numpy() for i in range(0, 100, 10)])\n"
        f"images = every[:10]\n{document['python']['onnx']}\n"
        "graph = np.concatenate([session.run(None, {'images': every[i:i + 10]})[0] for i in range(0, 100, 10)])\n"
        f"np.savez({str(tmp_path / 'logits.npz')!r}, theirs=theirs, graph=graph)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "logits.npz")
    for name in ("theirs", "graph"):
        assert np.abs(found[name] - ours).max() <= 1e-4, name
    assert "cls" not in document["python"]["safetensors"].split()
