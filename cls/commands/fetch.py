"""What a run needs from the internet: downloaded and noted while online, verified while offline.

The notes are ``fetched.json`` in the folder CLS_CACHE (~/.cache/cls). Reading them needs neither torch nor datasets, so
that ``--offline`` can reject a run within a second. The caches of torch.hub and datasets keep no hashes.
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cls.commands.fields import changed_fields
from cls.config import Run
from cls.runtime.files import sha256, write_whole
from cls.runtime.paths import cache_folder

# The fields that decide what is fetched.
FIELDS = ("data.path", "data.image_column", "data.label_column", "model.backbone", "model.weights")
# The variables that move caches; a job and a login shell may differ in them.
VARIABLES = ("CLS_CACHE", "TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE",
             "HF_DATASETS_CACHE")  # fmt: skip
SAMPLED = 2000  # files of a data set whose sizes a start compares: about a second on a network file system


@dataclass(frozen=True)
class Note:
    """One file that was fetched. ``what`` names the need it serves, ``size`` is in bytes."""

    what: str
    name: str
    path: str
    size: int
    sha256: str

    def damage(self, *, hashed: bool) -> str:
        """What is wrong with the file, '' if nothing; without ``hashed`` only its size is compared."""
        try:
            size = os.stat(self.path).st_size
            if size != self.size:
                return f"{self.path}: damaged, it has {size} bytes instead of {self.size}"
            if hashed and sha256(Path(self.path)) != self.sha256:
                return f"{self.path}: damaged, its SHA-256 is not the one it was fetched with"
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        return ""


def library_caches() -> dict[str, Path]:
    """The caches of torch.hub, the hub client and datasets, by the variable that moves each.

    Computed as those libraries do when they are imported (tests compare), but without the imports.
    """
    env, home = os.environ.get, os.path.expanduser("~/.cache")
    above = env("XDG_CACHE_HOME", home)
    hub = os.path.expanduser(env("HF_HOME", os.path.join(above, "huggingface")))
    return {
        "TORCH_HOME": Path(env("TORCH_HOME") or os.path.join(above, "torch")).expanduser(),
        "HF_HUB_CACHE": Path(env("HF_HUB_CACHE", env("HUGGINGFACE_HUB_CACHE", f"{hub}/hub"))).expanduser(),
        "HF_DATASETS_CACHE": Path(env("HF_DATASETS_CACHE", f"{hub}/datasets")).expanduser(),
    }


def hub_name(path: str) -> str:
    """``path`` if it can only be a data set of the hub, else ''."""
    if path == "digits" or Path(path).expanduser().exists():
        return ""
    return path if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path) else ""


def needed_weights(run: Run) -> str:
    """The name in the notes of the pretrained weights from the internet; '' for none or a local file.

    The library's version is part of it: it decides which file DEFAULT is.
    """
    name, weights = run.model.backbone, run.model.weights
    if weights == "none" or run.model.own_weights:
        return ""
    library = "timm" if name.startswith("timm/") else "torchvision"
    return f"weights {weights} of {name} ({library} {version(library).partition('+')[0]})"


def needed_data(run: Run) -> str:
    name = hub_name(run.data.path)
    return f"data set {name}" if name else ""


def command(run: Run) -> str:
    """The ``cls fetch`` command for this run, for a shell, with the caches of this process."""
    words = ["cls", "fetch", run.recipe, *changed_fields(run, FIELDS)]
    moved = [f"{name}={shlex.quote(os.environ[name])} " for name in VARIABLES if os.environ.get(name)]
    return "".join(moved) + shlex.join(words)


def fetch(run: Run) -> dict[str, Any]:
    """Download what a run needs and is missing or damaged; ValueError if that is not possible.

    Returns ``{"notes": path of fetched.json, "files": [{what, name, path, size, sha256, state}]}``, state being
    ``there``, ``fetched`` or ``fetched again``.
    """
    done: list[tuple[Note, str]] = []
    for what, work in ((needed_weights(run), _fetch_weights), (needed_data(run), _fetch_data)):
        if what:
            files = work(run, what)
            size = sum(note.size for note, _ in files) / 1e6
            more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
            _say(f"{files[0][1]}: {what}: {files[0][0].path}{more} ({size:.1f} MB)")
            done += files
    if not done:
        _say(f"nothing to fetch: {run.recipe} uses local files only")
    return {"notes": str(_notes_path()), "files": [asdict(note) | {"state": state} for note, state in done]}


def _fetch_weights(run: Run, what: str) -> list[tuple[Note, str]]:
    from cls.models.weights import HubFile, TorchFile, weight_source  # imports torch: 3 s

    source = weight_source(run.model)
    assert isinstance(source, HubFile | TorchFile), what
    path, state, damaged = source.path, "fetched", ""
    if path.is_file():
        noted = [note for note in read_notes() if note.what == what and note.path == str(path)]
        damaged = "".join(note.damage(hashed=True) for note in noted)
        if not noted and not sha256(path).startswith(source.sha256):
            damaged = f"{path}: damaged, its SHA-256 does not start with {source.sha256}"
        state = "fetched again" if damaged else "there"
    if damaged:
        _say(damaged)
    if state != "there":
        path = source.fetch()
    note = _note(what, path)
    _write_notes(what, [note])
    return [(note, state)]


def _fetch_data(run: Run, what: str) -> list[tuple[Note, str]]:
    from cls.data.tables import read_hub  # imports datasets: 3 s

    noted = _noted(what)
    damaged = {note: text for note in noted if (text := note.damage(hashed=True))}
    if noted and not damaged:
        return [(note, "there") for note in noted]
    for note, text in damaged.items():
        _say(text)
        for name in (os.path.realpath(note.path), note.path):  # the hub's cache has links to contents
            Path(name).unlink(missing_ok=True)
    for note in noted if damaged else []:
        if note.name == "dataset_info.json":  # datasets does not verify an existing folder
            shutil.rmtree(Path(note.path).parent, ignore_errors=True)
    files = _data_files(read_hub(run.data.path, run.data).parts)
    notes = [_note(what, file) for file in files]
    _write_notes(what, notes)
    return [(note, "fetched again" if damaged else "fetched") for note in notes]


def _data_files(parts: dict[str, Any]) -> list[Path]:
    """The files of a data set: the tables in datasets' cache, and images that the tables only name."""
    import pyarrow.compute as pc

    tables = {Path(item["filename"]) for part in parts.values() for item in part.images.cache_files}
    files = {file for folder in {table.parent for table in tables} for file in folder.iterdir() if file.is_file()}
    for part in parts.values():
        images = part.images.data.column("image")
        named = pc.filter(pc.struct_field(images, "path"), pc.is_null(pc.struct_field(images, "bytes")))
        files |= {Path(name) for name in named.to_pylist() if name}
    return sorted(files)


def _noted(what: str) -> list[Note]:
    """The notes of a need whose files are in the caches of this process."""
    roots = library_caches().values()
    return [n for n in read_notes() if n.what == what and any(Path(n.path).is_relative_to(root) for root in roots)]


def require_offline(run: Run) -> None:
    """Disable the network for this process; ValueError, with the command that fetches, if the run needs it.

    Weights are hashed (0.3 s for 350 MB); of data sets, which may have hundreds of gigabytes, sizes are compared.
    """
    go_offline()
    problems = []
    for what, hashed in ((needed_weights(run), True), (needed_data(run), False)):
        noted = _noted(what)
        if what and not noted:
            problems.append(f"{what}: not fetched" + _elsewhere(what))
        sampled = noted[:: 1 + len(noted) // SAMPLED]
        problems += [f"{what}: {text}" for note in sampled if (text := note.damage(hashed=hashed))]
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(
            f"offline, but this run needs what is not on this machine:\n  {listed}\n"
            f"Where there is internet, run:\n  {command(run)}"
        )


def _elsewhere(what: str) -> str:
    """The cache that a need was fetched to, if it is not one of this process."""
    paths = [note.path for note in read_notes() if note.what == what]
    caches = ", ".join(f"{name} {path}" for name, path in library_caches().items())
    return f" to the caches in use ({caches}), only to {paths[0]}" if paths else ""


def go_offline() -> None:
    """Disable the network for this process and its children, also in modules that are already imported.

    The hub client and datasets copy the variables when they are imported, and read the copies at every request.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ.setdefault("WANDB_MODE", "offline")
    for module, flags in (
        ("huggingface_hub.constants", ("HF_HUB_OFFLINE",)),
        ("datasets.config", ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")),
    ):
        if module in sys.modules:
            vars(sys.modules[module]).update(dict.fromkeys(flags, True))


def _notes_path() -> Path:
    return cache_folder() / "fetched.json"


def read_notes() -> list[Note]:
    """All files fetched on this machine; ValueError for notes that cannot be read."""
    path = _notes_path()
    try:
        return [Note(**entry) for entry in json.loads(path.read_text())["files"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); delete it and run `cls fetch` again") from error


def _write_notes(what: str, notes: list[Note]) -> None:
    """Replace the notes of a need in these caches; under a lock, as several processes may write."""
    with _locked(_notes_path().with_name("fetched.lock")):
        old = set(_noted(what))
        kept = [note for note in read_notes() if note not in old]
        data = {"files": [asdict(note) for note in kept + notes]}
        write_whole(_notes_path(), (json.dumps(data, indent=1) + "\n").encode())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; set CLS_CACHE to a folder that can be written") from error
    with file:
        with contextlib.suppress(OSError):  # Lustre mounted without -o flock has no locks: the last writer wins
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _note(what: str, path: Path) -> Note:
    path = path.absolute()
    return Note(what, path.name, str(path), path.stat().st_size, sha256(path))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
