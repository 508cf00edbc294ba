"""Upload of an export to the Hugging Face hub: everything that can be rejected is looked at before any work."""

import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError

STALE = ["model.safetensors", "model.onnx"]
"""Files of an earlier upload that would contradict the new config.json."""


def check_access(name: str, public: bool) -> None:
    """ValueError if the hub would not take an upload: no token, an invalid one, no network, another visibility."""
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"--push {name} needs the network, but HF_HUB_OFFLINE is set")
    if not get_token():
        raise ValueError(f"--push {name} needs a token of the hub that may write: run hf auth login, or set HF_TOKEN")
    api = HfApi()
    try:
        api.whoami()
        found: Any = api.repo_info(name)
    except RepositoryNotFoundError:
        return  # it will be made
    except Exception as error:  # the hub's own errors, httpx's and OSError
        raise ValueError(
            f"--push {name}: the hub does not answer, or does not take the token ({_short(error)}): run hf auth login"
        ) from error
    if found.private == public:
        is_now, advice = ("private", "leave out --public") if public else ("public", "add --public True")
        raise ValueError(f"--push {name}: the repository exists and is {is_now}: {advice}, or name another one")


def upload(folder: Path, files: list[str], name: str, public: bool) -> str:
    """Upload these files of the folder; the address of the repository. ValueError with the command that tries again."""
    api = HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=files,
            delete_patterns=[file for file in STALE if file not in files], commit_message="cls export",
        )  # fmt: skip
    except Exception as error:
        only = [word for file in files for word in ("--include", file)]
        again = shlex.join(["hf", "upload", name, str(folder), ".", *only, *([] if public else ["--private"])])
        raise ValueError(f"{folder} is complete, but was not uploaded ({_short(error)}); again: {again}") from error
    return str(address)


def _short(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__
