"""Training, prediction and evaluation where there is no network at all: in a network namespace with loopback only."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import ROOT, SHARED, environment

pytestmark = pytest.mark.integration

# Loopback is up on every machine, however cut off, but down in a new namespace. 0x8914 is SIOCSIFFLAGS, 0x41 up.
LOOPBACK = (
    "import fcntl, os, socket, struct, sys\n"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 0x41))\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
)
# Each command in a process forked from one that has imported torch, which takes longer than the commands.
COMMANDS = """
import json, os, sys
from cls.commands import main as cli
import train
for argv in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        sys.argv = argv
        try:
            train.main(argv[1:]) if argv[0] == "train.py" else cli.main()
        except SystemExit as error:
            sys.stdout.flush()
            os._exit(int(error.code or 0))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(f"{argv[1]}: exit status {code}", flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    """Skip where the kernel gives no namespaces to users; on CI that is a failure."""
    try:
        done = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else ""
    except FileNotFoundError:
        problem = "there is no unshare (util-linux)"
    if problem and os.environ.get("CI"):
        pytest.fail(f"no network namespace: {problem}")
    if problem:
        pytest.skip(f"needs a network namespace of its own: {problem}")


def cut_off(folder: Path, *arguments: str, **env: str) -> str:
    """Run Python without a network; gives its whole output. Home and caches are empty, offline variables are unset."""
    command = ["unshare", "-rn", sys.executable, "-c", LOOPBACK, *arguments]
    home = {"HOME": str(folder), "CLS_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "0", "TORCH_HOME": str(folder / "torch"), "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(
        command, env=environment(**home | env), capture_output=True, text=True, timeout=500, cwd=folder
    )
    return done.stdout + done.stderr


def test_the_namespace_has_loopback_and_nothing_else(tmp_path: Path) -> None:
    program = (
        "import socket, sys\n"
        "own = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(own.getsockname(), 5)\n"
        "for host, port in (('127.0.0.1', int(sys.argv[1])), ('192.0.2.1', 443)):\n"
        "    try:\n        socket.create_connection((host, port), 5)\n        print('connected')\n"
        "    except OSError as error:\n        print(error.strerror)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as outside:
        port = str(outside.getsockname()[1])
        socket.create_connection(("127.0.0.1", int(port))).close()  # there is somebody
        assert cut_off(tmp_path, "-c", program, port) == "Connection refused\nNetwork is unreachable\n"


def test_digits_train_predict_and_evaluate_without_a_network(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "run"
    commands = [
        ["train.py", "digits", "--data.limit", "60", "--data.workers", "0", "--train.batch", "32",
         "--train.micro-batch", "16", "--train.epochs", "1", "--track.wandb", "offline", "--out", str(out)],
        ["cls", "predict", str(out), str(photos / "test"), "--workers", "0"],
        ["cls", "evaluate", str(out), "--workers", "0", "--json"],
    ]  # fmt: skip
    said = cut_off(tmp_path, "-c", COMMANDS, json.dumps(commands))
    for command in ("digits", "predict", "evaluate"):
        assert f"{command}: exit status 0" in said, said
    assert json.loads((out / "exit.json").read_text())["outcome"] == "done"
    assert f"wandb sync {out}" in said and len(list((out / "wandb").glob("offline-run-*"))) == 1
    lines = (out / "predict-test" / "prediction.csv").read_text().splitlines()
    assert len(lines) == 1 + 6
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    best = max(row["val/accuracy"] for row in rows if "val/accuracy" in row)
    document = said[said.index("\n{\n") + 1 : said.rindex("\n}") + 2]
    assert json.loads(document)["accuracy"] == pytest.approx(best)


def test_missing_weights_are_reported_with_the_command_that_fetches_them(tmp_path: Path, photos: Path) -> None:
    since = time.monotonic()
    said = cut_off(tmp_path, str(ROOT / "train.py"), "mlp-head", "--data.path", str(photos), "--offline").splitlines()
    assert time.monotonic() - since < 5  # reported before the libraries are loaded
    assert said[0] == "user error: offline, but this run needs what is not on this machine:"
    assert said[1].startswith("  weights IMAGENET1K_V2 of resnext101_32x8d (torchvision ")
    assert said[1].endswith("): not fetched") and len(said) == 4
    assert said[3].endswith(f" cls fetch mlp-head --data.path {photos}")


@pytest.mark.soak
def test_real_photos_and_real_weights_without_a_network(tmp_path: Path, clothing: Path) -> None:
    weights, out = SHARED / "weights" / "tf_efficientnet_lite0.safetensors", tmp_path / "run"
    if not weights.is_file():
        pytest.skip(f"needs {weights.name} in a folder shared/weights beside the checkout")
    commands = [
        ["train.py", "resnet50-mlp", "--data.path", str(clothing), "--model.backbone", "timm/tf_efficientnet_lite0",
         "--model.weights", str(weights), "--data.size", "128", "--data.limit", "24", "--data.workers", "1",
         "--train.batch", "8", "--train.micro-batch", "8", "--train.max-steps", "2", "--track.wandb", "offline",
         "--out", str(out)],
        ["cls", "predict", str(out), str(clothing / "test"), "--workers", "1"],
    ]  # fmt: skip
    said = cut_off(tmp_path, "-c", COMMANDS, json.dumps(commands))
    assert "resnet50-mlp: exit status 0" in said and "predict: exit status 0" in said, said
    assert json.loads((out / "exit.json").read_text()) | {"reason": ""} == {
        "outcome": "done", "code": 0, "reason": "", "step": 2,
    }  # fmt: skip
    lines = (out / "predict-test" / "prediction.csv").read_text().splitlines()
    photos = sum(1 for path in (clothing / "test").rglob("*") if path.is_file())
    assert len(lines) == 1 + photos and photos > 300
