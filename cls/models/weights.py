"""Pretrained weights: found or downloaded before anything is built; read with safetensors or weights_only=True."""

import difflib
import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
import torchvision
from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cls.config import Model
from cls.models.backbones import TORCHVISION, check_backbone
from cls.models.sharding import assign
from cls.runtime.files import replacing, sha256

CONNECT_SECONDS = 10.0  # a firewall that drops packets would otherwise hold the job for minutes

log = logging.getLogger("cls")


def weight_file(config: Model) -> Path | None:
    """The local file with ``config.weights``, downloaded into the library's own cache if missing; None for none.

    ValueError: an unknown backbone or weights name (with the nearest ones), a missing file, or weights that are not in
    the cache and cannot be fetched (with the file and the command that fetches it). No download is tried when
    HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set. Several processes: call it on one of them first.
    """
    source = weight_source(config)
    if source is None or isinstance(source, Path):
        return source
    return source.path if source.path.is_file() else source.fetch()


def weights_sha256(config: Model) -> str:
    """The hash of the local file with ``config.weights``, 0.3 s for ResNeXt-101; '' for none. Fetches nothing."""
    source = weight_source(config)
    path = source.path if isinstance(source, TorchFile | HubFile) else source
    return sha256(path) if path and path.is_file() else ""


def weight_source(config: Model) -> "Path | TorchFile | HubFile | None":
    """Where ``config.weights`` come from, without fetching anything: a local file, a URL, a file of the hub, nowhere.

    ValueError: an unknown backbone or weights name (with the nearest ones), or a local file that does not exist.
    """
    check_backbone(config.backbone)
    if config.weights == "none":
        return None
    if config.own_weights:
        return _own_file(config.weights)
    names = ["none"]
    if config.backbone.startswith("timm/"):
        names += ["timm"]
    elif config.backbone in TORCHVISION:
        names += ["DEFAULT", *torchvision.models.get_model_weights(config.backbone).__members__]
    if config.weights not in names:
        near = difflib.get_close_matches(config.weights, names, 1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near and near != ["none"] else ""
        hint = f"did you mean the folder ./{config.weights}? " if Path(config.weights).is_dir() else hint
        raise ValueError(f"model.weights: {config.backbone} has no weights {config.weights!r}; {hint}it takes"
                         f" {', '.join(names)}, a run directory, or a local .safetensors or .pth file")  # fmt: skip
    if config.weights == "timm":
        return _timm_source(config.backbone.removeprefix("timm/"))
    return TorchFile(torchvision.models.get_model_weights(config.backbone)[config.weights].url)


def _own_file(weights: str) -> Path:
    """A file, or the best weights in a run directory."""
    path = Path(weights).expanduser()
    best = path / "best" / "model.safetensors"
    if path.is_file() or best.is_file():
        return path if path.is_file() else best
    if (path / "config.yaml").is_file():
        raise ValueError(f"model.weights: {weights}: {best} does not exist: name a run in which an epoch is done")
    found = "a folder but no run directory: name a run directory or the file" if path.is_dir() else "no such file"
    raise ValueError(f"model.weights: {weights}: {found}")


def _timm_source(name: str) -> "TorchFile | HubFile":
    import timm  # imported late: it takes 1.5 s

    stated = timm.get_pretrained_cfg(name)
    if stated and stated.hf_hub_id:
        repo, _, revision = stated.hf_hub_id.partition("@")
        return HubFile(repo, stated.hf_hub_filename or "model.safetensors", revision)
    if stated and isinstance(stated.url, str) and stated.url:
        return TorchFile(stated.url)
    others = [item for item in timm.list_pretrained() if item.split(".")[0] == name.split(".")[0]]
    hint = f"use timm/{others[0]}" if others else "use --model.weights none or a file"
    raise ValueError(f"model.weights: timm has no pretrained weights for {name}; {hint}")


@dataclass(frozen=True)
class TorchFile:
    """A file at a URL, kept in torch.hub's cache as torch and torchvision do."""

    url: str

    @property
    def path(self) -> Path:
        return Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(self.url).path).name)

    @property
    def sha256(self) -> str:
        """The start of its SHA-256, from a name such as ``resnet50-0676ba61.pth``; '' if the name has none."""
        stated = re.search(r"-([a-f0-9]{8,})\.", self.path.name)
        return stated[1] if stated else ""

    def fetch(self) -> Path:
        """Download it, replacing an existing file; ValueError with a command that does the same."""
        command = f"curl -L --create-dirs -o {self.path} {self.url}"
        _require_network(self.path, command)
        try:
            download(self.url, self.path, self.sha256)
        except (OSError, RuntimeError, HTTPException) as error:
            raise _unfetched(self.path, command, str(error)) from error
        return self.path


def download(url: str, file: Path, sha256: str) -> None:
    """Download ``url`` to ``file``, whole or not at all; its SHA-256 must start with ``sha256``.

    OSError when the server is silent for 10 s or closes the connection, RuntimeError for a wrong hash. (torch.hub's own
    function waits forever, and keeps incomplete files whose name states no hash.)
    """
    found, done = hashlib.sha256(), 0
    with replacing(file) as aside, urlopen(url, timeout=CONNECT_SECONDS) as answer, aside.open("wb") as to:
        size = int(answer.headers.get("Content-Length") or -1)
        log.info("fetching %s (%s)", url, f"{size / 1e6:.1f} MB" if size >= 0 else "size unknown")
        while chunk := answer.read(1 << 20):
            to.write(chunk)
            found.update(chunk)
            done += len(chunk)
        if size not in (-1, done):
            raise OSError(f"the server broke off after {done} of {size} bytes")
        if not found.hexdigest().startswith(sha256):
            raise RuntimeError(f"invalid hash value (expected {sha256!r}, got {found.hexdigest()!r})")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the Hugging Face hub, kept in the hub's cache; ``revision`` '' is the main branch."""

    repo: str
    name: str
    revision: str = ""

    @property
    def url(self) -> str:
        return hf_hub_url(self.repo, self.name, revision=self.revision or None)

    @property
    def path(self) -> Path:
        """Its place in the cache; ``*`` for a revision that was never downloaded."""
        cached = try_to_load_from_cache(self.repo, self.name, revision=self.revision or None)
        if isinstance(cached, str):
            return Path(cached)
        folder = Path(constants.HF_HUB_CACHE, f"models--{self.repo.replace('/', '--')}")
        return folder / "snapshots" / (self.revision or "*") / self.name

    @property
    def sha256(self) -> str:
        """Its SHA-256 where the hub states it (it then names the cached content), else ''."""
        content = os.path.basename(os.path.realpath(self.path))
        return content if re.fullmatch(r"[0-9a-f]{64}", content) else ""

    def fetch(self) -> Path:
        """Download it, replacing an existing file; ValueError with a command that does the same."""
        command = f"hf download {self.repo} {self.name}" + (f" --revision {self.revision}" if self.revision else "")
        _require_network(self.path, command)
        try:
            with urlopen(Request(self.url, method="HEAD"), timeout=CONNECT_SECONDS):
                pass  # fail fast: hf_hub_download retries five times
            again = self.path.is_file()  # a damaged file is downloaded again
            path = Path(hf_hub_download(self.repo, self.name, revision=self.revision or None, force_download=again))
            found = sha256(path)
            if not found.startswith(self.sha256):
                os.unlink(os.path.realpath(path))
                raise RuntimeError(f"invalid hash value (expected {self.sha256!r}, got {found!r})")
            return path
        except (
            Exception
        ) as error:  # the hub raises its own errors, httpx's and OSError; the way out is the same for all
            raise _unfetched(self.path, command, str(error)) from error


def _require_network(file: Path, command: str) -> None:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on"):
            raise _unfetched(file, command, f"{variable} is set")


def _unfetched(file: Path, command: str, reason: str) -> ValueError:
    return ValueError(
        f"model.weights: {file} is not there and was not fetched ({reason}). Where there is internet, run:\n  {command}"
    )


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file, by name; nothing in it is executed.

    A state dict nested under "state_dict" or "model" is found, the prefixes "module." and "_orig_mod." are removed.
    """
    loaded: Any
    try:
        safe = path.suffix == ".safetensors"
        loaded = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: is no torch file, or holds other Python objects than tensors (which could run code; nothing was "
            "run). If you trust it, save its state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as weights ({error}); fetch it again") from error
    while isinstance(loaded, dict) and (inner := next((k for k in ("state_dict", "model") if k in loaded), None)):
        loaded = loaded[inner]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path}: expected a state dict (names and tensors), found {type(loaded).__name__}")
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in loaded.items()}


def load_exact(model: nn.Module, path: Path) -> None:
    """Load a checkpoint of this very model; ValueError unless all names and shapes agree."""
    state = read_state(path)
    target = model.state_dict()
    _require(path, _misfits(target, state, optional=set()))
    for name, value in state.items():
        assign(target[name], value)


def load_pretrained(
    model: nn.Module, path: Path, *, classifier: str, gate: int, added: set[str], whole: bool, names: Sequence[str] = ()
) -> None:
    """Load a backbone's file into the finished model: everything but the head, which stays fresh.

    ``added`` are the keys that the pretrained backbone does not have. With a gate the file's own output layer is loaded
    too, since the gate works on its logits. ``whole`` allows a file with exactly this model's names and shapes (a
    checkpoint of an earlier run) to be loaded head and all, unless its header states other classes than ``names`` or
    the same in another order: such a head would give each class another one's logits. ValueError names what is missing
    or left over.
    """
    state, target = read_state(path), model.state_dict()
    stated = classes_of(path) if whole and names else ()
    other = bool(stated) and stated != tuple(names)
    if whole and not other and not _misfits(target, state, optional=set()):
        model.load_state_dict(state)
        log.info("weights: %s: all of it loaded, the head included", path)
        return
    head = {name for name in state if name.startswith(f"{classifier}.")}
    body = {name: tensor for name, tensor in state.items() if name not in head}
    wanted = {name: tensor for name, tensor in target.items() if not name.startswith(f"{classifier}.")}
    if gate:
        own = {name for name in head if name.startswith(f"{classifier}.0.")}  # of a run with a gate, whose rest is new
        body |= {name: state[name] for name in own}
        body |= {} if own else {name.replace(classifier, f"{classifier}.0", 1): state[name] for name in head}
        wanted |= {name: tensor for name, tensor in target.items() if name.startswith(f"{classifier}.0.")}
    _require(path, _misfits(wanted, body, optional=added))
    model.load_state_dict(body, strict=False)
    if other or not gate:
        outputs = state[f"{classifier}.weight"].shape[0] if f"{classifier}.weight" in head else "unknown"
        what = _compared(stated, names) if other else f"{outputs} classes"
        seen = other and os.environ.get("RANK", "0") == "0"  # of an own run one may expect the head, too
        text = "weights: %s: backbone loaded, the file's head (%s) replaced by a fresh one"
        log.log(logging.WARNING if seen else logging.INFO, text, path, what)


def classes_of(path: Path) -> tuple[str, ...]:
    """The class names in the header of a file that train.py wrote; () for other files."""
    if path.suffix != ".safetensors":
        return ()
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("classes", "[]")
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: the classes in its header are damaged; copy it again")
    return tuple(names)


def _compared(stated: Sequence[str], names: Sequence[str]) -> str:
    if set(stated) == set(names):
        return "the same classes in another order"
    return f"{len(stated)} classes, {len(set(stated) & set(names))} of them among the {len(names)} here"


def _misfits(target: dict[str, Tensor], state: dict[str, Tensor], *, optional: set[str]) -> list[str]:
    """What keeps ``state`` from filling ``target``, in words; files older than torch 0.4.1 count no BatchNorm steps."""
    missing = [k for k in target if k not in state and k not in optional and not k.endswith("num_batches_tracked")]
    left_over = [k for k in state if k not in target]
    shapes = [f"{k} {list(state[k].shape)} instead of {list(target[k].shape)}" for k in target
              if k in state and state[k].shape != target[k].shape]  # fmt: skip
    found = {"missing": missing, "left over": left_over, "of another shape": shapes}
    return [f"{len(names)} {what}: {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
            for what, names in found.items() if names]  # fmt: skip


def _require(path: Path, misfits: list[str]) -> None:
    if misfits:
        raise ValueError(f"{path}: does not fit the model; {'; '.join(misfits)}. Use the backbone it was trained with")
