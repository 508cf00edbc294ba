"""Pretrained files: what is loaded, what is rejected, and what the user sees."""

import functools
import hashlib
import http.server
import io
import json
import logging
import os
import pickle
import threading
import urllib.request
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from cls.config import Model
from cls.models.build import build_model
from cls.models.weights import TorchFile, download, load_exact, read_state, weight_file

SHARED = Path(__file__).parents[3] / "shared"
FRESH = Model(backbone="resnet18", weights="none")


def library_state(seed: int = 3, classes: int = 1000) -> dict[str, torch.Tensor]:
    """A torchvision-shaped state dict of random values, buffers included."""
    with torch.device("meta"):
        shapes = {
            name: value.shape for name, value in torchvision.models.resnet18(num_classes=classes).state_dict().items()
        }
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(17) if name.endswith("tracked") else torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }


def backbone_equals(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    loaded = model.state_dict()
    return all(torch.equal(loaded[name], value) for name, value in state.items() if not name.startswith("fc."))


def test_a_torchvision_file_loads_into_the_backbone_and_the_head_stays_fresh(tmp_path, caplog):
    state = library_state()
    torch.save(state, tmp_path / "weights.pth")
    config = replace(FRESH, weights=str(tmp_path / "weights.pth"))
    with caplog.at_level(logging.INFO, "cls"):
        model = build_model(config, 10, 5)
    assert backbone_equals(model, state)
    assert torch.equal(model.fc.weight, build_model(FRESH, 10, 5).fc.weight)
    [line] = caplog.messages
    assert (
        line
        == f"weights: {tmp_path}/weights.pth: backbone loaded, the file's head (1000 classes) replaced by a fresh one"
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: OrderedDict((f"module._orig_mod.{name}", value) for name, value in state.items()),
        lambda state: {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")},
        lambda state: {name: value for name, value in state.items() if not name.startswith("fc.")},
    ],
)
def test_wrapped_prefixed_old_and_headless_files_are_understood(tmp_path, wrap):
    state = library_state()
    torch.save(wrap(state), tmp_path / "weights.pt")
    model = build_model(replace(FRESH, weights=str(tmp_path / "weights.pt")), 10, 5)
    assert backbone_equals(model, {name: value for name, value in state.items() if not name.endswith("tracked")})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "1 missing: layer1.0.conv1.weight. Use the backbone"),
        (lambda s: s.pop("bn1.running_mean"), "1 missing: bn1.running_mean"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 left over: extra"),
        (lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
         r"1 of another shape: conv1.weight \[64, 1, 7, 7\] instead of \[64, 3, 7, 7\]"),
        (lambda s: [s.pop(k) for k in list(s) if "layer2." in k], r"25 missing: layer2.0.conv1.weight, .*, \.\.\."),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_rejected_by_key(tmp_path, spoil, message):
    state = library_state()
    spoil(state)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=f"weights.safetensors: does not fit the model; {message}"):
        build_model(replace(FRESH, weights=str(tmp_path / "weights.safetensors")), 10, 0)


def test_the_gate_takes_the_files_own_logits(tmp_path):
    state = library_state()
    save_file(state, tmp_path / "weights.safetensors")
    config = replace(FRESH, weights=str(tmp_path / "weights.safetensors"), gate=8, head="16 relu")
    model = build_model(config, 10, 0)
    assert backbone_equals(model, state)
    assert torch.equal(model.fc[0].weight, state["fc.weight"]) and torch.equal(model.fc[0].bias, state["fc.bias"])

    headless = {name: value for name, value in state.items() if not name.startswith("fc.")}
    save_file(headless, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"2 missing: fc.0.weight, fc.0.bias"):
        build_model(config, 10, 0)
    save_file(library_state(classes=12), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"2 of another shape: fc.0.weight \[12, 512\] instead of \[1000, 512\]"):
        build_model(config, 10, 0)


@pytest.mark.parametrize("gate", [0, 8])
def test_an_earlier_run_is_continued_whole_or_without_its_head(tmp_path, gate):
    config = replace(FRESH, cbam=(4,), gate=gate, head="16 bn relu")
    save_file(build_model(config, 10, 1).state_dict(), tmp_path / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    again = replace(config, weights=str(tmp_path / "model.safetensors"))
    assert all(torch.equal(value, saved[name]) for name, value in build_model(again, 10, 2).state_dict().items())
    if gate:
        return
    other = build_model(again, 7, 2)
    assert backbone_equals(other, saved)
    assert torch.equal(other.layer4[-1].spatial.weight, saved["layer4.2.spatial.weight"])
    assert torch.equal(other.fc[0].weight, build_model(config, 7, 2).fc[0].weight)


CLASSES = tuple("abcdefghij")


def run_directory(path: Path, config: Model, classes: tuple[str, ...], header: str = "") -> Path:
    """With the weights and the header of train.py."""
    (path / "best").mkdir(parents=True)
    state = build_model(config, len(classes), 1).state_dict()
    save_file(state, path / "best" / "model.safetensors", {"classes": header or json.dumps(classes)})
    return path


def test_a_run_directory_is_its_best_weights(tmp_path, monkeypatch):
    run = run_directory(tmp_path / "run", FRESH, CLASSES)
    found = replace(FRESH, weights=str(run))
    assert weight_file(found) == run / "best" / "model.safetensors"
    saved = load_file(run / "best" / "model.safetensors")
    model = build_model(found, 10, 2, CLASSES)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    monkeypatch.chdir(tmp_path)
    assert weight_file(replace(FRESH, weights="./run")) == Path("run/best/model.safetensors")
    with pytest.raises(ValueError, match=r"has no weights 'run'; did you mean the folder \./run\?"):
        weight_file(replace(FRESH, weights="run"))


@pytest.mark.parametrize(("gate", "names", "what"), [
    (0, CLASSES[::-1], "the same classes in another order"),
    (8, (*tuple("abcdefghi"), "new"), "10 classes, 9 of them among the 10 here"),
    (0, CLASSES[:4], "10 classes, 4 of them among the 4 here"),
])  # fmt: skip
def test_the_head_of_other_classes_is_not_loaded(tmp_path, caplog, gate, names, what):
    """With as many classes all shapes agree, and each class would be given another one's logits."""
    config = replace(FRESH, gate=gate, head="16 relu")
    run = run_directory(tmp_path / "run", config, CLASSES)
    saved, fresh = load_file(run / "best" / "model.safetensors"), build_model(config, len(names), 5).state_dict()
    model = build_model(replace(config, weights=str(run)), len(names), 5, names)
    assert backbone_equals(model, saved)
    for name, value in model.state_dict().items():
        if name.startswith("fc."):
            kept = gate and name.startswith("fc.0.")  # the backbone's own logits, which the gate works on
            assert torch.equal(value, (saved if kept else fresh)[name]), name
    [line] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"the file's head ({what}) replaced by a fresh one" in line.getMessage()


def test_a_damaged_list_of_classes_is_named(tmp_path):
    run = run_directory(tmp_path / "run", FRESH, CLASSES, header="[1")
    with pytest.raises(ValueError, match=r"model.safetensors: the classes in its header are damaged"):
        build_model(replace(FRESH, weights=str(run)), 10, 2, CLASSES)


def test_load_exact_is_strict(tmp_path):
    model = build_model(replace(FRESH, head="16 relu"), 10, 1)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = build_model(replace(FRESH, head="16 relu"), 10, 2)
    load_exact(other, tmp_path / "model.safetensors")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"fc.2.weight \[10, 16\] instead of \[11, 16\]"):
        load_exact(build_model(replace(FRESH, head="16 relu"), 11, 2), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: fc.weight, fc.bias; 4 left over: fc.0.bias"):
        load_exact(build_model(FRESH, 10, 2), tmp_path / "model.safetensors")


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_a_pickled_object_is_rejected_and_not_executed(tmp_path, container):
    marker, file = tmp_path / "executed", tmp_path / "weights.pth"
    if container == "torch":
        torch.save({"state_dict": library_state(), "args": Payload(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(Payload(marker), protocol=2))
    with pytest.raises(ValueError, match=r"weights.pth: .*other Python objects than tensors.*nothing was run"):
        build_model(replace(FRESH, weights=str(file)), 10, 0)
    assert not marker.exists()
    pickle.load(io.BytesIO(pickle.dumps(Payload(marker))))
    assert marker.exists()  # the payload is live: a careless loader would have run it


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"not a header", "a.safetensors: cannot be read as weights"),
        ("a.safetensors", b"", "a.safetensors: cannot be read as weights"),
        ("a.pth", b"", "a.pth: "),
        ("a.pth", b"plain text", "a.pth: is no torch file"),
        ("a.pth", b"PK\x03\x04 cut short", "a.pth: "),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_state(tmp_path / name)


def test_a_file_without_a_state_dict_is_named(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth: expected a state dict \(names and tensors\), found list"):
        read_state(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: expected a state dict"):
        read_state(tmp_path / "other.pth")


def test_a_missing_file_is_found_out_before_building(tmp_path):
    with pytest.raises(ValueError, match=r"model.weights: .*/no.pth: no such file"):
        weight_file(replace(FRESH, weights=str(tmp_path / "no.pth")))
    with pytest.raises(ValueError, match=r"model.weights: .*: a folder but no run directory: name a run directory or"):
        weight_file(replace(FRESH, weights=str(tmp_path)))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(
        ValueError, match=r"model.weights: .*best/model.safetensors does not exist: name a run in which"
    ):
        weight_file(replace(FRESH, weights=str(tmp_path)))


TORCHVISION_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


def test_offline_names_the_file_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    with pytest.raises(ValueError) as caught:
        weight_file(replace(FRESH, weights="DEFAULT"))
    assert str(caught.value) == (
        f"model.weights: {file} is not there and was not fetched (HF_HUB_OFFLINE is set). "
        f"Where there is internet, run:\n  curl -L --create-dirs -o {file} {TORCHVISION_URL}"
    )
    # the file that the command would fetch is then what is used
    file.parent.mkdir(parents=True)
    torch.save(library_state(), file)
    weight_file(replace(FRESH, weights="DEFAULT"))
    assert backbone_equals(build_model(replace(FRESH, weights="IMAGENET1K_V1"), 10, 0), library_state())


def test_no_network_is_reported_like_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setattr(urllib.request, "_opener", None)  # an earlier download in this process has made one for good
    with pytest.raises(ValueError, match=rf"Connection refused.*\n  curl -L --create-dirs -o .* {TORCHVISION_URL}"):
        weight_file(replace(FRESH, weights="DEFAULT"))
    assert not list(tmp_path.rglob("*.pth*"))


def test_timm_weights_come_from_the_hub_cache_or_the_command_is_named(tmp_path, monkeypatch):
    config = Model(backbone="timm/resnetrs50", weights="timm")
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # read from HF_HOME when imported
    repo = tmp_path / "models--timm--resnetrs50.tf_in1k"
    wanted = (
        f"model.weights: {repo}/snapshots/*/model.safetensors is not there and was not fetched (%s). "
        "Where there is internet, run:\n  hf download timm/resnetrs50.tf_in1k model.safetensors"
    )
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setattr(urllib.request, "_opener", None)  # an earlier download in this process has made one for good
    with pytest.raises(ValueError) as caught:
        weight_file(config)
    assert str(caught.value) == wanted % "<urlopen error [Errno 111] Connection refused>"
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    with pytest.raises(ValueError) as caught:
        weight_file(config)
    assert str(caught.value) == wanted % "TRANSFORMERS_OFFLINE is set"

    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True)
    file = repo / "snapshots" / ("0" * 40) / "model.safetensors"
    file.write_bytes(b"")
    assert weight_file(config) == file


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; what is named ``torn`` breaks off in the middle, as a lost connection does."""

    def do_GET(self):
        if "torn" not in self.path:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "7000")
        self.end_headers()
        self.wfile.write(b"weights" * 500)

    def log_message(self, *args):
        pass


def test_a_download_is_whole_and_has_the_stated_hash(tmp_path):
    content = b"weights" * 1000
    sha256 = hashlib.sha256(content).hexdigest()
    good, bad = f"net-{sha256[:8]}.pth", "net-00000000.pth"
    (tmp_path / "served").mkdir()
    for name in (good, bad, "plain.pth"):
        (tmp_path / "served" / name).write_bytes(content)
    handler = functools.partial(Server, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name in (good, "plain.pth"):
            download(f"{address}/{name}", tmp_path / "cache" / name, TorchFile(f"{address}/{name}").sha256)
        with pytest.raises(RuntimeError, match="invalid hash value"):
            download(f"{address}/{bad}", tmp_path / "cache" / bad, TorchFile(f"{address}/{bad}").sha256)
        with pytest.raises(OSError, match="404"):
            download(f"{address}/absent.pth", tmp_path / "cache" / "absent.pth", "")
        with pytest.raises(OSError, match="broke off after 3500 of 7000 bytes"):
            download(f"{address}/torn.pth", tmp_path / "cache" / "torn.pth", "")
        with pytest.raises(OSError, match="broke off"):  # what was there before stays
            download(f"{address}/torn.pth", tmp_path / "cache" / "plain.pth", "")
        server.shutdown()
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == [good, "plain.pth"]
    assert all((tmp_path / "cache" / name).read_bytes() == content for name in (good, "plain.pth"))


def test_real_timm_weights(caplog):
    file = SHARED / "weights" / "tf_efficientnet_lite0.safetensors"
    if not file.is_file():
        pytest.skip(f"needs {file.name} in a folder shared/weights beside the checkout")
    with caplog.at_level(logging.INFO, "cls"):
        model = build_model(Model(backbone="timm/tf_efficientnet_lite0", weights=str(file)), 10, 0).eval()
    assert "(1000 classes) replaced" in caplog.text
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    reference.load_state_dict(load_file(file))
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = reference.forward_head(reference.forward_features(images), pre_logits=True)
        assert torch.equal(model.forward_features(images), reference.forward_features(images))
        assert torch.equal(
            model(images), torch.nn.functional.linear(features, model.classifier.weight, model.classifier.bias)
        )
        # with a gate the 1000 logits are the backbone's own
        gated = build_model(Model(backbone="timm/tf_efficientnet_lite0", weights=str(file), gate=4), 10, 0).eval()
        assert torch.equal(gated.classifier[0](features), reference(images))
