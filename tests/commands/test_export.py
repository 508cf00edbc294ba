"""``cls export``: other libraries give the run's logits on real photos, from the lines that are shown."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file

from cls.commands.arguments import Export
from cls.commands.export import run as export_run
from cls.commands.export.agreement import LIMIT, agreement, logit_difference, photos, sentence
from cls.commands.export.onnx import require_packages
from cls.commands.export.reading import frame_of, onnx_code
from cls.commands.export.run import batch_sizes, export
from cls.commands.export.snippets import expressible, plain
from cls.commands.export.timm_config import preprocessing
from cls.commands.options import ExportOptions, Format, PredictOptions
from cls.commands.predict import predict_images
from cls.config import Data, Model
from cls.data.dataset import EvalDataset, ViewDataset
from cls.data.loader import load_batch
from cls.data.readers import images_of
from cls.data.sources import load_images
from cls.evaluation.ensemble_record import models_of
from cls.evaluation.predictions import Predictions, read_parquet
from cls.evaluation.trained_model import load_trained_model
from cls.models.backbones import HALF
from cls.runtime.signals import StopSignal
from cls.transforms.ops import view_ops
from tests.harness import ROOT, environment
from tests.harness.untrained import photos as untrained_photos
from tests.harness.untrained import untrained

CLASSES = 7
OURS: dict[str, Any] = {
    "backbone": "resnext14_8x8d", "cbam": (1, 2, 3, 4), "gate": 9, "head": "20 bn silu dropout:0.3", "dropout3": 0.5,
}  # fmt: skip


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
    document = exported(tmp_path, clothing, model, count=9)
    assert list(document["differences"]) == [library] and document["differences"][library] <= LIMIT
    assert document["images"] == 9 and document["files"] == ["config.json", "model.safetensors"]
    text = document["python"]["safetensors"]
    assert f"import {library}" in text or f"from {library}" in text
    loading = text.split("import json")[0]
    assert sum(not line.startswith(("import", "from")) for line in loading.splitlines()) <= 3
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
    (whole,) = document["agreement"][library]["against"]
    assert whole["images"] == 9 and whole["labels"] >= 8 and whole["probability"] < 0.05
    assert whole["views"] == ["identity"] and scope["classes"] == [f"class {i}" for i in range(CLASSES)]
    assert scope["probabilities"](sorted((clothing / "test").iterdir())[0]).shape == (CLASSES,)


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

    out = PredictOptions(out=str(tmp_path / "out"), device="cpu", workers=0)
    for models in ([str(tmp_path / "to")], [str(tmp_path / name) for name in "ab"]):
        predict_images(models, [str(clothing / "test")], out, StopSignal())
        predicted = read_parquet(tmp_path / "out" / "predictions.parquet")
        found.append(predicted.probs)
    assert found[0].tobytes() == found[1].tobytes()  # the folder is used like the runs
    shown = np.stack([np.asarray(scope["probabilities"](clothing / "test" / name)) for name in predicted.ids[:5]])
    assert np.abs(shown - found[0][:5]).max() < 0.05 and found[0][:5].std() > 1e-3

    graphs = replace(command, options=replace(options, format=("onnx",), count=2), to=str(tmp_path / "graphs"))
    graphs.do(StopSignal())
    assert sorted(path.name for path in (tmp_path / "graphs" / "member-1").iterdir()) == ["config.json", "model.onnx"]
    with pytest.raises(ValueError, match="does not name its members' files: name the runs themselves"):
        models_of(str(tmp_path / "graphs"))  # of which cls has no weights

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
    _, images, pixels = photos(trained, load_images(str(clothing / "test"), trained.run.data), 7)
    for batch in (1, 7):
        (logits,) = session.run(None, {"pixels": pixels[:batch].numpy()})
        with torch.no_grad():
            ours = trained.model(images[:batch])
        assert logits.shape == (batch, CLASSES) and np.abs(logits - ours.numpy()).max() <= LIMIT
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


@pytest.mark.integration
def test_the_shown_lines_give_the_labels_of_cls_predict(tmp_path: Path, clothing: Path) -> None:
    """A head fitted on real photos, 100 others of 400 x 533: from the file on, with the recipe's test-time views.

    The library's own transform of the same photos gives 97 to 99 labels without views (cls/commands/export/reading.py).
    """
    weights = clothing.parents[1] / "weights" / "tf_efficientnet_lite0.safetensors"
    if not weights.is_file():
        pytest.skip("needs the pretrained weights in ../shared/weights")
    classes = tuple(sorted(path.name for path in (clothing / "train").iterdir()))
    model = {"backbone": "timm/tf_efficientnet_lite0", "weights": str(weights)}
    data, augment = {"size": 64}, {"tta": ("identity", "hflip", "crop")}
    untrained(tmp_path / "run", classes, data, model, augment=augment)
    fit_head(tmp_path / "run", clothing / "train", classes)
    options = ExportOptions(format=("safetensors", "onnx"), images=str(clothing / "test"))
    document = export(str(tmp_path / "run"), tmp_path / "to", options, StopSignal())
    assert list(document["agreement"]) == ["timm", "onnxruntime"]
    for found in document["agreement"].values():
        assert found["applied"] == ["identity", "hflip"]
        whole, applied = found["against"]
        assert whole["views"] == ["identity", "hflip", "crop"] and applied["views"] == ["identity", "hflip"]
        assert applied["images"] == 100 and applied["labels"] >= 98 and applied["probability"] < 0.02
        assert len(applied["others"]) == 100 - applied["labels"]
        assert 80 <= whole["labels"] <= 100 and whole["probability"] > applied["probability"]
    graph = (tmp_path / "to" / "model.onnx").read_bytes()
    assert sys.prefix.encode() not in graph and str(ROOT).encode() not in graph  # torch's stack traces
    paths = sorted((clothing / "test").iterdir())[:9]
    predict = PredictOptions(out=str(tmp_path / "out"), device="cpu", workers=0, tta=("flip",))
    predict_images([str(tmp_path / "run")], [str(path) for path in paths], predict, StopSignal())
    predicted = read_parquet(tmp_path / "out" / "predictions.parquet")
    for text in document["python"].values():
        scope: dict[str, Any] = {}
        exec(text, scope)
        theirs = np.stack([np.asarray(scope["probabilities"](path)) for path in paths])
        assert np.abs(theirs - predicted.probs).max() < 0.02 and len(set(predicted.probs.argmax(1))) > 1


def fit_head(run: Path, train: Path, classes: tuple[str, ...], each: int = 20) -> None:
    """Least squares with a penalty on the features of ``each`` photos of every class, written into best/."""
    file = run / "best" / "model.safetensors"
    trained = load_trained_model(str(run), "cpu", 0, StopSignal())
    net: Any = trained.model
    features, targets = [], []
    for label, name in enumerate(classes):
        _, images, _ = photos(trained, load_images(str(train / name), trained.run.data), each)
        with torch.no_grad():
            features.append(net.forward_head(net.forward_features(images), pre_logits=True))
        targets += [label] * len(images)
    x = torch.cat([torch.cat(features), torch.ones(len(targets), 1)], 1).double()
    y = 10 * torch.eye(len(classes), dtype=torch.float64)[targets]
    weights = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ y).float().T
    state = net.state_dict() | {"classifier.weight": weights[:, :-1], "classifier.bias": weights[:, -1]}
    with safe_open(file, framework="pt") as stored:
        header = stored.metadata()
    save_file({name: value.contiguous() for name, value in state.items()}, file, header)


@pytest.mark.parametrize(
    ("tta", "lines"), [(("hflip",), "[ImageOps.mirror(image)]"), (("rotate", "hflip"), "[ImageOps.mirror(image)]"),
                       (("hflip", "identity"), "[image, ImageOps.mirror(image)]"), (("rotate",), "[image]")],
)  # fmt: skip
def test_views_that_any_library_can_compute_are_applied(tmp_path: Path, tta: tuple[str, ...], lines: str) -> None:
    """PNGs squashed by torchvision: equal to cls predict in the same views, and not in the views that are left out."""
    noise = untrained_photos(tmp_path / "photos")
    data = {"size": 24, "eval_frame": "squash"}
    untrained(tmp_path / "run", 4, data, {"backbone": "resnext14_8x8d"}, augment={"tta": tta})
    options = ExportOptions(images=str(noise / "test"), count=6)
    document = export(str(tmp_path / "run"), tmp_path / "to", options, StopSignal())
    assert f"for view in {lines}" in document["python"]["safetensors"]
    found = document["agreement"]["torchvision"]
    *whole, own = found["against"]
    assert sorted(own["views"]) == sorted(found["applied"])
    assert own["labels"] == own["images"] == 6 and own["probability"] < 0.01
    assert bool(whole) == ("rotate" in tta) and all(one["probability"] > own["probability"] for one in whole)


def test_agreement_counts_labels_and_names_the_others(tmp_path: Path) -> None:
    """By hand: one other label, one file that Pillow cannot read, one equal."""
    probs = np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    known = Predictions(ids=["a", "b", "c"], labels=np.array([-1] * 3), probs=probs, errors=[""] * 3,
                        classes=("x", "y"), loss=float("nan"))  # fmt: skip

    def theirs(path: Path) -> np.ndarray:
        if path.name == "b":
            raise OSError("corrupt EXIF")
        return np.array({"a": [0.45, 0.55], "c": [0.2, 0.8]}[path.name])

    found = agreement(theirs, [tmp_path / name for name in "abc"], {("identity", "rotate"): known})
    (row,) = found["against"]
    assert (row["labels"], row["images"], row["others"], row["probability"]) == (1, 3, ["a", "b"], 1.0)
    assert found["applied"] == ["identity"]
    text = sentence("timm", found | {"against": [row, row | {"views": ["identity"]}]})
    assert text == (
        "timm, from image file to probability: 1 of 3 labels, probabilities within 1, of cls predict (identity, "
        "rotate); the lines lack its views rotate: 1 of 3 labels, probabilities within 1, with --tta identity; other "
        "labels: a, b"
    )


@pytest.mark.parametrize("frame", ["center", "squash"])
def test_the_printed_reading_is_the_fused_path(tmp_path: Path, frame: str) -> None:
    """JPEGs of several sizes and turns, a PNG: the mean difference is small, least where cls decodes reduced."""
    rng, files = np.random.default_rng(0), []
    for number, (width, height, turn) in enumerate([(400, 533, 1), (533, 400, 6), (90, 70, 1), (900, 301, 3)]):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
        low = coarse.resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = turn
        files.append(tmp_path / f"{number}.jpg")
        low.save(files[-1], quality=90, exif=exif)
    low.save(tmp_path / "4.png")
    data = Data(size=32, eval_frame=frame)
    rows = load_images(str(tmp_path), data)
    ours = load_batch(ViewDataset(images_of(rows), view_ops("identity", data), 32, 0, "identity"), range(len(rows)))
    code = onnx_code("uint8", frame_of(data, HALF), ("identity",))
    (tmp_path / "config.json").write_text('{"label_names": ["a"]}')
    differences = {}
    for reading in ("cls", "library"):
        scope: dict[str, Any] = {}
        exec(code.read(tmp_path, reading, ("identity",)), scope)
        theirs = np.concatenate([scope["read"](tmp_path / name) for name in rows["id"]])
        found = np.abs(ours.pixels.permute(0, 2, 3, 1).numpy().astype(int) - theirs.astype(int))
        differences[reading] = found.mean((1, 2, 3))
    # 90 x 70 is decoded whole, where cls replicates chroma and Pillow interpolates it
    assert differences["cls"].max() < 1.5 and np.delete(differences["cls"], 2).max() < 0.5
    assert differences["cls"].mean() < differences["library"].mean()


def test_a_field_that_other_libraries_do_not_know_makes_a_network_ours() -> None:
    assert plain(Model(backbone="resnet18")) and not plain(Model(head="5"))
    assert expressible(Model(head="5", dropout3=0.5, freeze=("stem",), weights="none"))
    assert not expressible(Model(gate=3)) and not expressible(Model(cbam=(2,)))


# --- refusals ---


def test_other_logits_are_an_error() -> None:
    ours = torch.randn(4, 3)
    for theirs in (ours + 2 * LIMIT, ours * float("nan"), ours[:, :2]):
        with pytest.raises(ValueError, match="timm gives other logits than the run's network"):
            logit_difference("timm", lambda some, wrong=theirs: wrong[: len(some)], ours, ours, [4])
    assert logit_difference("timm", lambda some: some + LIMIT / 2, ours, ours, [1, 3]) == pytest.approx(
        LIMIT / 2, rel=0.1
    )
    assert [batch_sizes(count, 8) for count in (1, 3, 8, 20)] == [[1], [1, 2], [1, 7], [1, 7, 8, 4]]


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
    _, images, _ = photos(trained, load_images(str(clothing / "test"), trained.run.data), 100)
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
