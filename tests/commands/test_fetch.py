"""`cls fetch` against a real server on this machine in place of the internet, and the check of what it has fetched."""

import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cls.commands.fetch import (
    FIELDS,
    VARIABLES,
    Note,
    command,
    fetch,
    hub_name,
    read_notes,
    require_offline,
)
from cls.commands.parsing import parse_run
from cls.config import flat
from cls.runtime.paths import cache_folder
from tests.harness import ROOT, environment

REVISION = "1" * 40
WEIGHTS = b"weights" * 400_000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
RESNET = f"resnet18-{SHA256[:8]}.pth"
TIMM = "timm/resnetrs50.tf_in1k"  # where timm says that its resnetrs50 is


class Hub(BaseHTTPRequestHandler):
    """The few answers of the Hugging Face hub that its client and datasets ask for, and plain files under /files/."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/((?:datasets/)?[\w-]+/[\w.-]+)/resolve/[^/]+/(.+)|/(files/.+)", path):
            self._file(f"{found[1]}/{found[2]}" if found[1] else found[3])
        elif found := re.fullmatch(r"/api/(datasets/[\w-]+/[\w.-]+?)((?:/revision|/tree|/paths-info)/.*)?", path):
            self._listing(found[1], (found[2] or "/").split("/")[1:], body)
        else:
            self._answer(b"", 404)

    do_HEAD = do_POST = do_GET

    def _file(self, name: str) -> None:
        data = self.server.files.get(name)
        if data is None:
            return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION})
        stated = self.server.stated.get(name) or hashlib.sha256(data).hexdigest()
        if name in self.server.torn and self.command == "GET":
            self.close_connection = True
            return self._answer(data[: len(data) // 2], 200, {"ETag": f'"{stated}"'}, size=len(data))
        return self._answer(data, 200, {"X-Repo-Commit": REVISION, "ETag": f'"{stated}"'})

    def _listing(self, repo: str, what: list[str], body: bytes) -> None:
        names = [name.removeprefix(f"{repo}/") for name in self.server.files if name.startswith(f"{repo}/")]
        files = [
            {"type": "file", "path": name, "size": len(self.server.files[f"{repo}/{name}"]), "oid": name.encode().hex()}
            for name in names
        ]
        if what[0] == "tree":
            above = {str(parent) for name in names for parent in Path(name).parents} - {"."}
            tree = [*files, *({"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(above))]
            root = "/".join(what[2:])
            deep = "recursive=true" in self.path.lower()
            inside = [item for item in tree if not root or str(item["path"]).startswith(f"{root}/")]
            found: Any = [item for item in inside if deep or str(item["path"]).rpartition("/")[0] == root]
        elif what[0] == "paths-info":
            asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            found = [item for item in files if item["path"] in asked]
        else:
            found = {"id": repo.removeprefix("datasets/"), "sha": REVISION, "private": False, "tags": [],
                     "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
        self._answer(json.dumps(found).encode(), 200, {"Content-Type": "application/json"})

    def _answer(self, data: bytes, status: int, headers: dict[str, str] | None = None, size: int = -1) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size if size >= 0 else len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if self.server.gate and data in (WEIGHTS, self.server.files.get("gated")):
            self.server.gate.wait(60)
        self.wfile.write(data[len(data) // 2 :])

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hub)
        self.files: dict[str, bytes] = {}  # "repo/name", "datasets/repo/name" or "files/name"
        self.stated: dict[str, str] = {}  # SHA-256 that the hub states, where it is not the true one
        self.torn: set[str] = set()  # files whose transfer breaks off in the middle
        self.gate: Any = None  # holds the weights' second half back
        self.asked: list[str] = []

    def handle_error(self, *args: object) -> None:
        """A client that was killed is what some tests are about."""


# Forks a process for each line it reads: the libraries, which read HF_HOME and HF_ENDPOINT on import, cost 10 s once.
ZYGOTE = """
import json, os, sys, time, traceback
import datasets.config, timm, torchvision
from huggingface_hub import constants
from cls.commands import fetch
from cls.commands.parsing import parse_run
from cls.data import readers, sources
from cls.models.weights import weight_file

def act(job):
    torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value.url = job["url"]
    if job["command"] == "caches":
        import importlib, torch
        importlib.reload(constants), importlib.reload(datasets.config)
        own = {"TORCH_HOME": os.path.dirname(torch.hub.get_dir()), "HF_HUB_CACHE": constants.HF_HUB_CACHE,
               "HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE)}
        return [own, {name: str(path) for name, path in fetch.library_caches().items()}]
    run = parse_run(job["argv"])
    if job["command"] == "fetch":
        return fetch.fetch(run)
    fetch.require_offline(run)
    splits = sources.load(run.data, run.seed)
    return {"weights": str(weight_file(run.model)), "ids": splits.train["id"][:] + splits.val["id"][:],
            "bytes": sorted(bytes(data).hex() for rows in (splits.train, splits.val)
                            for data in readers.images_of(rows).read(range(len(rows))))}

for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        os.environ |= job["env"]
        os.dup2(os.open(job["errors"], os.O_CREAT | os.O_WRONLY), 2)
        code = 1
        try:
            with open(job["result"], "w") as result:
                json.dump(act(job), result)
            code = 0
        except ValueError as error:
            print(error, file=sys.stderr, flush=True)
            code = 2
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)
    print(pid, flush=True)
"""


@dataclass
class Internet:
    """The server, and processes that believe it to be the internet."""

    server: Server
    zygote: subprocess.Popen[str]
    home: Path
    folder: Path = Path()
    started: int = 0
    jobs: dict[int, tuple[Path, Path]] = field(default_factory=dict)

    def start(self, command: str, *argv: str, url: str = RESNET, env: dict[str, str] | None = None) -> int:
        """Begin ``fetch`` (or ``require`` and load, or ``caches``) in a process; gives its id."""
        self.started += 1
        files = [self.folder / f"{self.started}.{name}" for name in ("errors", "result")]
        own = {"CLS_CACHE": str(self.folder / "cls"), "TORCH_HOME": str(self.folder / "torch")}
        job = {"command": command, "argv": list(argv), "url": f"{self.address}/files/{url}", "env": own | (env or {}),
               "errors": str(files[0]), "result": str(files[1])}  # fmt: skip
        pid = self._ask(job)
        self.jobs[pid] = files[0], files[1]
        return pid

    def end(self, pid: int) -> tuple[int, str, Any]:
        """Exit status, standard error and result of a process."""
        code = self._ask({"wait": pid})
        errors, result = self.jobs.pop(pid)
        return code, errors.read_text(), json.loads(result.read_text()) if code == 0 else None

    def do(self, command: str, *argv: str, **how: Any) -> tuple[int, str, Any]:
        return self.end(self.start(command, *argv, **how))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def notes(self) -> list[dict[str, Any]]:
        return json.loads((self.folder / "cls" / "fetched.json").read_text())["files"]

    def _ask(self, job: dict[str, Any]) -> int:
        assert self.zygote.stdin and self.zygote.stdout
        self.zygote.stdin.write(json.dumps(job) + "\n")
        self.zygote.stdin.flush()
        return int(self.zygote.stdout.readline())


def unmoved() -> dict[str, str]:
    """A clean environment without the developer's own caches."""
    return {name: value for name, value in environment().items() if name not in VARIABLES}


@pytest.fixture(scope="module")
def whole_internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    home = tmp_path_factory.mktemp("hub")
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = unmoved() | dict(
            HF_HOME=str(home), HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_TELEMETRY="1", HF_UPDATE_DOWNLOAD_COUNTS="0", HF_HUB_DISABLE_PROGRESS_BARS="1",
        )  # fmt: skip
        zygote = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=ROOT, text=True
        )
        yield Internet(server, zygote, home)
        assert zygote.stdin
        zygote.stdin.close()
        assert zygote.wait(30) == 0
        server.shutdown()


@pytest.fixture
def internet(whole_internet: Internet, tmp_path: Path) -> Iterator[Internet]:
    server = whole_internet.server
    server.files = {f"files/{RESNET}": WEIGHTS, f"{TIMM}/model.safetensors": WEIGHTS}
    server.stated, server.torn, server.gate, server.asked = {}, set(), None, []
    whole_internet.folder = tmp_path
    yield whole_internet


def resnet(folder: Path) -> Path:
    return folder / "torch" / "hub" / "checkpoints" / RESNET


RUN = ("resnet50-mlp", "--model.backbone", "resnet18", "--model.weights", "DEFAULT", "--data.path", "digits")
TIMM_RUN = ("resnet50-mlp", "--model.backbone", "timm/resnetrs50", "--model.weights", "timm", "--data.path", "digits")


def spoil(path: Path) -> None:
    """Another byte in the middle, the size as it was."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.integration
def test_weights_are_fetched_noted_found_again_and_replaced_when_damaged(internet: Internet) -> None:
    code, said, document = internet.do("fetch", *RUN)
    file = resnet(internet.folder)
    assert code == 0 and "fetched: weights DEFAULT of resnet18 (torchvision" in said and str(file) in said
    assert file.read_bytes() == WEIGHTS
    [note] = document["files"]
    assert note.pop("state") == "fetched"
    assert note == internet.notes[0] and len(internet.notes) == 1
    assert (note["name"], note["path"], note["size"], note["sha256"]) == (RESNET, str(file), len(WEIGHTS), SHA256)
    assert internet.server.asked == [f"GET /files/{RESNET}"]

    code, said, document = internet.do("fetch", *RUN)
    assert (code, document["files"][0]["state"]) == (0, "there") and said.startswith("there: ")
    assert len(internet.server.asked) == 1

    spoil(file)
    code, said, document = internet.do("fetch", *RUN)
    assert (code, document["files"][0]["state"]) == (0, "fetched again")
    assert f"{file}: damaged, its SHA-256 is not the one" in said
    assert file.read_bytes() == WEIGHTS and len(internet.server.asked) == 2

    file.write_bytes(WEIGHTS[:5000])
    code, said, _ = internet.do("fetch", *RUN)
    assert code == 0 and f"{file}: damaged, it has 5000 bytes instead of {len(WEIGHTS)}" in said
    assert file.read_bytes() == WEIGHTS and len(internet.notes) == 1


def test_a_file_that_was_there_before_is_noted_or_by_its_stated_hash_found_damaged(internet: Internet) -> None:
    file = resnet(internet.folder)
    file.parent.mkdir(parents=True)
    file.write_bytes(WEIGHTS)
    code, _, document = internet.do("fetch", *RUN)
    assert (code, document["files"][0]["state"], internet.server.asked) == (0, "there", [])
    assert internet.notes[0]["sha256"] == SHA256

    (internet.folder / "cls" / "fetched.json").unlink()
    spoil(file)
    code, said, document = internet.do("fetch", *RUN)
    assert (code, document["files"][0]["state"]) == (0, "fetched again")
    assert f"does not start with {SHA256[:8]}" in said and file.read_bytes() == WEIGHTS


def test_offline_wants_what_was_fetched_and_names_the_command(internet: Internet) -> None:
    code, said, _ = internet.do("require", *RUN)
    version = re.search(r"\(torchvision ([\d.]+)\)", said)
    assert code == 2 and version
    assert said == (
        "offline, but this run needs what is not on this machine:\n"
        f"  weights DEFAULT of resnet18 (torchvision {version[1]}): not fetched\n"
        "Where there is internet, run:\n"
        f"  CLS_CACHE={internet.folder}/cls TORCH_HOME={internet.folder}/torch HF_HOME={internet.home} "
        "cls fetch resnet50-mlp --data.path digits --model.backbone resnet18 --model.weights DEFAULT\n"
    )
    internet.do("fetch", *RUN)
    code, _, found = internet.do("require", *RUN)
    assert (code, found["weights"]) == (0, str(resnet(internet.folder)))
    assert len(internet.server.asked) == 1
    spoil(resnet(internet.folder))
    code, said, _ = internet.do("require", *RUN)
    assert code == 2 and f"{resnet(internet.folder)}: damaged, its SHA-256" in said
    resnet(internet.folder).unlink()
    code, said, _ = internet.do("require", *RUN)
    assert code == 2 and f"{resnet(internet.folder)}: No such file or directory" in said


def test_another_cache_or_another_library_version_counts_as_not_fetched(internet: Internet) -> None:
    internet.do("fetch", *RUN)
    elsewhere = str(internet.folder / "elsewhere")
    code, said, _ = internet.do("require", *RUN, env={"TORCH_HOME": elsewhere})
    assert code == 2 and f"TORCH_HOME {elsewhere}" in said and f"only to {resnet(internet.folder)}" in said
    path = internet.folder / "cls" / "fetched.json"
    path.write_text(path.read_text().replace("(torchvision ", "(torchvision 0."))
    code, said, _ = internet.do("require", *RUN)
    assert code == 2 and said.count("not fetched") == 1


def test_two_fetches_at_once_lose_nothing(internet: Internet) -> None:
    internet.server.gate = threading.Barrier(2)  # each is in the middle of its file when the other one is
    pids = [internet.start("fetch", *argv) for argv in (RUN, TIMM_RUN)]
    assert [internet.end(pid)[0] for pid in pids] == [0, 0]
    assert sorted(note["name"] for note in internet.notes) == ["model.safetensors", RESNET]
    assert {note["sha256"] for note in internet.notes} == {SHA256}

    resnet(internet.folder).unlink()
    internet.server.gate = threading.Barrier(2)  # the same file twice
    pids = [internet.start("fetch", *RUN) for _ in range(2)]
    assert [internet.end(pid)[0] for pid in pids] == [0, 0]
    assert os.listdir(resnet(internet.folder).parent) == [RESNET]
    assert resnet(internet.folder).read_bytes() == WEIGHTS and len(internet.notes) == 2


def test_notes_are_read_and_written_under_a_lock(internet: Internet) -> None:
    """What another process notes while this one waits for the lock is kept."""
    other = {"what": "weights of another network", "name": "x", "path": "/x", "size": 1, "sha256": "0" * 64}
    path = internet.folder / "cls" / "fetched.json"
    path.parent.mkdir()
    with path.with_name("fetched.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pid = internet.start("fetch", *RUN)
        end = time.monotonic() + 60
        while not re.search(rf"-> FLOCK .* {pid} ", Path("/proc/locks").read_text()):
            assert time.monotonic() < end and " Z " not in Path(f"/proc/{pid}/stat").read_text(), "it did not wait"
            time.sleep(0.01)
        path.write_text(json.dumps({"files": [other]}))
    assert internet.end(pid)[0] == 0
    assert internet.notes[0] == other and [note["name"] for note in internet.notes] == ["x", RESNET]


def test_a_killed_download_leaves_no_file_and_the_next_one_fetches_it(internet: Internet) -> None:
    internet.server.gate = threading.Event()
    pid = internet.start("fetch", *RUN)
    folder = resnet(internet.folder).parent
    end = time.monotonic() + 60
    while not (folder.exists() and any(file.stat().st_size for file in folder.iterdir())):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert internet._ask({"wait": pid}) == -signal.SIGKILL
    internet.server.gate.set()
    assert not resnet(internet.folder).exists() and not (internet.folder / "cls").exists()
    assert internet.do("require", *RUN)[0] == 2
    assert internet.do("fetch", *RUN)[0] == 0
    assert resnet(internet.folder).read_bytes() == WEIGHTS
    assert internet.do("require", *RUN)[0] == 0


@pytest.mark.parametrize("argv", [RUN, TIMM_RUN], ids=["torchvision", "hub"])
def test_a_broken_transfer_and_a_wrong_hash_are_rejected(internet: Internet, argv: tuple[str, ...]) -> None:
    def kept() -> list[Path]:
        found = [*(internet.folder / "torch").rglob("*"), *(internet.home / "hub" / f"models--{mangled}").rglob("*")]
        return [path for path in found if path.is_file() and path.stat().st_size]

    mangled = TIMM.replace("/", "--")
    subprocess.run(["rm", "-rf", str(internet.home / "hub" / f"models--{mangled}")], check=True)
    internet.server.torn = {f"files/{RESNET}", f"{TIMM}/model.safetensors"}
    code, said, _ = internet.do("fetch", *argv)
    assert code == 2 and "Where there is internet, run:" in said
    if argv == RUN:
        assert f"the server broke off after {len(WEIGHTS) // 2} of {len(WEIGHTS)} bytes" in said and not kept()
    else:
        assert all(path.name.endswith(".incomplete") or path.stat().st_size < 100 for path in kept())

    internet.server.torn = set()
    other = b"tampers" * 400_000
    internet.server.files = dict.fromkeys(internet.server.files, other)
    internet.server.stated = dict.fromkeys(internet.server.files, SHA256)
    code, said, _ = internet.do("fetch", *argv)
    assert code == 2 and "invalid hash value" in said and hashlib.sha256(other).hexdigest() in said
    assert not [path for path in kept() if path.read_bytes() == other]
    assert not (internet.folder / "cls" / "fetched.json").exists()


def test_timm_weights_of_the_hub_are_fetched_and_replaced_when_damaged(internet: Internet) -> None:
    subprocess.run(["rm", "-rf", str(internet.home / "hub")], check=True)
    code, _, document = internet.do("fetch", *TIMM_RUN)
    [note] = document["files"]
    assert code == 0 and (note["state"], note["sha256"]) == ("fetched", SHA256)
    file = Path(note["path"])
    assert file.parts[-2:] == (REVISION, "model.safetensors") and file.is_relative_to(internet.home)
    asked = len(internet.server.asked)
    assert internet.do("fetch", *TIMM_RUN)[2]["files"][0]["state"] == "there"
    assert internet.do("require", *TIMM_RUN)[2]["weights"] == str(file)
    assert len(internet.server.asked) == asked
    spoil(file.resolve())
    code, said, _ = internet.do("require", *TIMM_RUN)
    assert code == 2 and f"{file}: damaged" in said
    assert said.endswith(
        " cls fetch resnet50-mlp --data.path digits --model.backbone timm/resnetrs50 --model.weights timm\n"
    )
    assert internet.do("fetch", *TIMM_RUN)[2]["files"][0]["state"] == "fetched again"
    assert file.read_bytes() == WEIGHTS


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_data_set_of_the_hub_is_fetched_used_offline_and_replaced_when_damaged(internet: Internet) -> None:
    images = [png(20 * i) for i in range(6)]
    table = pa.table({"image": [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)],
                      "label": [f"class {i % 2}" for i in range(6)]})  # fmt: skip
    sink = io.BytesIO()
    pq.write_table(table, sink)
    internet.server.files["datasets/tiny/photos/data/train-00000-of-00001.parquet"] = sink.getvalue()
    argv = ("digits", "--data.path", "tiny/photos")

    code, said, _ = internet.do("require", *argv)
    assert code == 2 and "data set tiny/photos: not fetched" in said and internet.server.asked == []
    assert said.endswith(f" HF_HOME={internet.home} cls fetch digits --data.path tiny/photos\n")
    code, said, document = internet.do("fetch", *argv)
    assert code == 0 and "fetched: data set tiny/photos" in said
    assert sorted(note["name"] for note in document["files"]) == ["dataset_info.json", "photos-train.arrow"]
    asked = len(internet.server.asked)

    code, _, found = internet.do("require", *argv)
    assert code == 0 and found["bytes"] == sorted(data.hex() for data in images)
    assert internet.do("fetch", *argv)[2]["files"][0]["state"] == "there"
    assert len(internet.server.asked) == asked  # no request, though the libraries were imported before going offline

    arrow = next(Path(note["path"]) for note in document["files"] if note["name"].endswith(".arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-1])
    code, said, _ = internet.do("require", *argv)
    assert code == 2 and f"{arrow}: damaged, it has {arrow.stat().st_size} bytes" in said
    code, said, again = internet.do("fetch", *argv)
    assert code == 0 and f"{arrow}: damaged" in said and again["files"][0]["state"] == "fetched again"
    assert internet.do("require", *argv)[2]["bytes"] == found["bytes"]
    spoil(arrow)
    assert internet.do("fetch", *argv)[2]["files"][0]["state"] == "fetched again"
    assert internet.do("require", *argv)[2]["bytes"] == found["bytes"]


def test_image_files_of_a_hub_data_set_are_part_of_it(internet: Internet) -> None:
    images = {f"train/{label}/{label}{i}.png": png(40 * i + 9 * len(label)) for label in ("a", "bb") for i in range(3)}
    internet.server.files |= {f"datasets/tiny/folder/{name}": data for name, data in images.items()}
    argv = ("digits", "--data.path", "tiny/folder")
    code, said, document = internet.do("fetch", *argv)
    assert code == 0, said
    noted = {note["sha256"]: Path(note["path"]) for note in document["files"]}
    assert set(noted) >= {hashlib.sha256(data).hexdigest() for data in images.values()}
    asked = len(internet.server.asked)
    code, _, found = internet.do("require", *argv)
    assert code == 0 and found["bytes"] == sorted(data.hex() for data in images.values())
    assert len(internet.server.asked) == asked

    victim = noted[hashlib.sha256(images["train/a/a1.png"]).hexdigest()]
    victim.resolve().write_bytes(b"")
    code, said, _ = internet.do("require", *argv)
    assert code == 2 and f"{victim}: damaged, it has 0 bytes" in said
    assert internet.do("fetch", *argv)[0] == 0
    assert internet.do("require", *argv)[2]["bytes"] == found["bytes"]


def test_the_caches_are_where_the_libraries_say(internet: Internet) -> None:
    for env in (
        {"TORCH_HOME": "/a/torch"},
        {"HF_HOME": "/b/hf", "XDG_CACHE_HOME": "/c"},
        {"HF_HOME": "~/hf", "HF_HUB_CACHE": "/d/hub", "HF_DATASETS_CACHE": "/e/sets"},
        {"HF_HOME": "/f", "HUGGINGFACE_HUB_CACHE": "/g/old"},
    ):
        code, said, found = internet.do("caches", env=env)
        assert code == 0, said
        theirs, ours = found
        assert ours == {name: os.path.expanduser(path) for name, path in theirs.items()}, env


def test_a_run_with_local_files_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("CLS_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "WANDB_MODE"):
        monkeypatch.setenv(name, "0")  # require_offline sets them for the process: put back afterwards
    (tmp_path / "photos").mkdir()
    for run in (
        parse_run(["digits"]),
        parse_run(["mlp-head", "--data.path", str(tmp_path / "photos"), "--model.weights", "own.pth"]),
    ):
        document = fetch(run)
        assert document == {"notes": str(tmp_path / "cache" / "fetched.json"), "files": []}
        assert capsys.readouterr().err == f"nothing to fetch: {run.recipe} uses local files only\n"
    assert not (tmp_path / "cache").exists()


def test_the_check_imports_none_of_the_slow_libraries(tmp_path: Path) -> None:
    """So that `--offline` is rejected at once: torch and datasets take seconds to import."""
    program = (
        "import os, sys\n"
        "from cls.commands.parsing import parse_run\n"
        "from cls.commands.fetch import require_offline\n"
        "try:\n    require_offline(parse_run(sys.argv[1:]))\n"
        "except ValueError as error:\n    print(error)\n"
        "print(sorted({'torch', 'datasets', 'timm', 'wandb', 'huggingface_hub'} & set(sys.modules)))\n"
        "print([os.environ[n] for n in ('HF_HUB_OFFLINE', 'HF_DATASETS_OFFLINE', 'WANDB_MODE')])\n"
    )
    argv = [sys.executable, "-c", program, "mlp-head", "--data.path", "someone/it"]
    env = unmoved() | {"CLS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    said = subprocess.run(argv, env=env, cwd=ROOT, text=True, capture_output=True, check=True).stdout.splitlines()
    assert [line.strip() for line in said[-3:]] == [
        f"CLS_CACHE={tmp_path} cls fetch mlp-head --data.path someone/it", "[]", "['1', '1', 'offline']",
    ]  # fmt: skip
    assert said[1].startswith("  weights ") and said[2] == "  data set someone/it: not fetched"
    env["WANDB_MODE"] = "disabled"
    said = subprocess.run(argv, env=env, cwd=ROOT, text=True, capture_output=True, check=True).stdout.splitlines()
    assert said[-1] == "['1', '1', 'disabled']"


@pytest.mark.parametrize(
    "values",
    [
        {"data.path": "/data/my photos/it's"},
        {"data.path": "$HOME/x; rm -rf *", "data.image_column": 'a "b"'},
        {"data.path": "x/y", "model.backbone": "resnet50", "model.weights": "IMAGENET1K_V1"},
    ],
)
def test_the_command_means_the_same_run_for_the_shell(values: dict[str, str], monkeypatch: Any) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    argv = ["mlp-head", "--train.batch", "32", "--train.micro-batch", "8"]
    run = parse_run([*argv, *(word for name, value in values.items() for word in (f"--{name}", value))])
    words = shlex.split(command(run))
    assert words[:3] == ["cls", "fetch", "mlp-head"] and "--train.batch" not in words
    again = flat(parse_run(words[2:]))
    assert {name: again[name] for name in FIELDS} == {name: flat(run)[name] for name in FIELDS}
    shell = subprocess.run(f"printf '%s\\0' {command(run)}", shell=True, capture_output=True, text=True, check=True)
    assert shell.stdout.split("\0")[:-1] == words
    monkeypatch.setenv("HF_HOME", "/a b/$c")
    assert command(run).startswith("HF_HOME='/a b/$c' cls fetch mlp-head ")


def test_which_paths_are_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10").mkdir()
    assert [hub_name(path) for path in ("beans", "ylecun/mnist", "cifar10", "digits", "", "a/b/c", "/a", "./a")] == [
        "beans", "ylecun/mnist", "", "", "", "", "", "",
    ]  # fmt: skip


def test_notes_that_cannot_be_read_or_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLS_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" and read_notes() == []
    (tmp_path / "cache").mkdir()
    for text in ("{", "[]", '{"files": [{"path": 1}]}'):
        (tmp_path / "cache" / "fetched.json").write_text(text)
        with pytest.raises(ValueError, match=r"fetched.json: cannot be read .*; delete it and run `cls fetch` again"):
            read_notes()


def test_fetch_says_where_its_notes_cannot_be_written(internet: Internet) -> None:
    (internet.folder / "file").write_text("")
    code, said, _ = internet.do("fetch", *RUN, env={"CLS_CACHE": str(internet.folder / "file" / "cache")})
    assert code == 2 and "set CLS_CACHE to a folder that can be written" in said


def test_damage_is_found_by_size_and_by_hash(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    note = Note("weights", "x", str(file), 3, hashlib.sha256(b"abc").hexdigest())
    assert note.damage(hashed=True) == "" == note.damage(hashed=False)
    file.write_bytes(b"abd")
    assert note.damage(hashed=False) == "" and "SHA-256" in note.damage(hashed=True)
    file.write_bytes(b"ab")
    assert note.damage(hashed=False) == f"{file}: damaged, it has 2 bytes instead of 3"
    assert require_offline(parse_run(["digits"])) is None  # what needs nothing is never rejected
