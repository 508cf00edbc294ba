"""The W&B run of a run directory: one, for any number of processes and attempts."""

import dataclasses
import hashlib
import inspect
import io
import json
import logging
import os
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from safetensors import safe_open

from cls.config import NO_VALIDATION, Run, Track, flat
from cls.runtime.console import printable
from cls.runtime.files import write_whole
from cls.tracking.metrics_log import Mistake, Row, best_row
from cls.tracking.run_files import without_seed

Mode = Literal["online", "offline", "disabled"]
LOG = logging.getLogger("cls")
INIT_SECONDS = 60  # a cluster node without internet waits this long at every start
TAG = 64  # characters of a tag
MISTAKES = 64  # wrong images in the table
FINISH_SECONDS = 120  # for the upload at the end; `wandb sync` sends the rest
LEAVE_SECONDS = 10  # the same for a stopped run: its next attempt sends the rest


def wandb_mode(track: Track) -> Mode:
    """The W&B mode: the configured one; with auto, WANDB_MODE if set, else online when a key is known, else offline."""
    if track.wandb != "auto":
        return track.wandb
    match os.environ.get("WANDB_MODE", ""):
        case "":
            return "online" if wandb_key() else "offline"
        case "online" | "run":
            return "online"
        case "offline" | "dryrun":
            return "offline"
        case "disabled":
            return "disabled"
        case other:
            raise ValueError(f"WANDB_MODE must be online, offline or disabled, found {other!r}")


def wandb_key() -> bool:
    import wandb  # here and below: 1 s, only on rank 0 of a tracked run

    try:
        wandb.setup(wandb.Settings(silent=True))
        if "prompt" in inspect.signature(wandb.login).parameters:
            known = wandb.login(prompt=False, verify=False)
        else:  # an older one, whose login() asks on a terminal and waits for the server
            known = bool(wandb.api.api_key)
        wandb.teardown()  # login() has started a service and two threads: forking is unsafe beside them
        return known
    except (wandb.errors.AuthenticationError, ValueError) as error:  # a malformed key or WANDB_* value
        raise ValueError(f"W&B: {error}; correct it, or use --track.wandb disabled") from error


def load() -> None:
    """Import W&B in this thread: loader workers, forked while another thread imports, would inherit its locks."""
    import wandb  # noqa: F401  # the import is the effect


class WandbRun:
    """Sends rows, pictures and weights; resumes the W&B run of an earlier attempt."""

    def __init__(self, run: Run, out: Path, mode: Mode, rows: Sequence[Row], info: dict[str, Any]) -> None:
        import wandb

        self._artifact, self._best_on, self._validated = run.track.artifact, run.train.best_on, list[dict[str, Any]]()
        self._framing = {name: getattr(run.data.evaluated, name) for name in ("size", "eval_frame", "crop_pct")}
        try:
            self._run = _init_wandb(run, out, mode, info)
        except Exception as error:  # no network, a rejected key, a server that does not answer
            if mode == "offline":
                raise
            LOG.warning("W&B cannot be reached, logging offline (%s)", str(error).partition("\n")[0])
            wandb.teardown()  # the failed call still holds the run id
            self._run = _init_wandb(run, out, "offline", info)
        self._run.define_metric("global_step")
        self._run.define_metric("*", step_metric="global_step")
        self._step = 0
        # Offline each process writes a new directory, with all rows. Online the server has all rows before its last
        # step, also those of steps that are repeated now; a row of that step may be sent twice.
        self._seen = self._run.summary.get("global_step", 0)
        if not run.data.validates:
            self._run.summary["validation"] = NO_VALIDATION
        for row in rows:
            self.log(row)
        self._mark_earlier(out / "wandb")
        if not self._run.offline:
            LOG.info("W&B run: %s", self._run.url)

    def _mark_earlier(self, folder: Path) -> None:
        """Mark earlier offline attempts as synced, so that `wandb sync` skips them: this one has all their rows."""
        own = Path(self._run.settings.sync_file).resolve()
        for file in folder.glob(f"offline-run-*/run-{self._run.id}.wandb"):
            if file.resolve() != own:
                file.with_suffix(".wandb.synced").touch()

    def log(self, row: Row) -> None:
        self._step = int(row["step"])
        self._note_best(row)
        if self._step < self._seen:
            return
        values = {key: value for key, value in row.items() if key not in ("step", "time")}
        self._run.log({"global_step": self._step, **values})  # not step=: W&B drops rows behind its own step

    def _note_best(self, row: Row) -> None:
        """Show the best validation so far, so that a stopped or killed run has it, too."""
        if "val/accuracy" not in row:
            return
        self._validated.append(dict(row))
        if best := best_row(self._validated, self._best_on):
            shown = {"epoch": "epoch", "step": "step", "val/accuracy": "accuracy", "val/loss": "loss"}
            self._run.summary.update({f"best/{name}": best[key] for key, name in shown.items() if key in best})

    def results(self, pictures: Mapping[str, Path], mistakes: Sequence[Mistake], model: Path) -> None:
        """Log pictures, the first MISTAKES wrong images as a table and, if configured, the weights."""
        import wandb

        self._run.log({"global_step": self._step} | {name: wandb.Image(str(path)) for name, path in pictures.items()})
        try:
            if mistakes:
                self._run.log({"global_step": self._step, "wrong_images": _table(mistakes[:MISTAKES])})
            if self._artifact == "always" or (self._artifact == "auto" and not self._run.offline):
                self._send(model)
        except Exception as error:  # copied to WANDB_DATA_DIR, by default the home directory, which may be full
            LOG.warning("W&B does not get the wrong images or the model: %s", error)

    def _send(self, model: Path) -> None:
        import wandb

        with safe_open(model, framework="np") as file:
            header = file.metadata()
        facts = {key: json.loads(header[key]) for key in ("classes", "statistics")}  # mean and std of the input
        artifact = wandb.Artifact(f"model-{self._run.id}", "model", metadata=facts | {"data": self._framing})
        artifact.add_file(str(model))
        self._run.log_artifact(artifact, aliases=["best"])

    def finish(self, summary: Mapping[str, float]) -> str:
        command = f"wandb sync {shlex.quote(self._run.settings.sync_dir)}"
        self._run.summary.update(dict(summary))
        try:
            self._run.finish()
        except TimeoutError:
            return command
        return command if self._run.offline else ""


def group_of(run: Run) -> str:
    """The group of runs that differ only in the seed, as in ``cls compare``: recipe and hash of the configuration.

    Only fields that are not at their default count, so that a new field of a later version changes no group.
    """
    usual = without_seed(flat(Run()))
    kept = {name: value for name, value in without_seed(flat(run)).items() if value != usual[name]}
    return f"{run.recipe}-{hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]}"


def tags_of(run: Run) -> tuple[str, ...]:
    """Recipe and name of the data, as W&B allows tags: not empty, 64 characters at most; and those of WANDB_TAGS."""
    data = (os.path.basename(os.path.abspath(run.data.path)) if run.data.path else "") or run.data.path
    words = (run.recipe, data, *os.environ.get("WANDB_TAGS", "").split(","))
    return tuple(dict.fromkeys(tag for word in words if (tag := printable(word).strip()[:TAG].strip())))


def _table(mistakes: Sequence[Mistake]) -> Any:
    import wandb

    photos = (wandb.Image(Image.open(io.BytesIO(wrong.picture)), file_type="jpg") for wrong in mistakes)
    rows = [
        [wrong.id, photo, wrong.true, wrong.predicted, wrong.probability]
        for wrong, photo in zip(mistakes, photos, strict=True)
    ]
    return wandb.Table(["id", "picture", "true", "predicted", "probability"], rows)


def _init_wandb(run: Run, out: Path, mode: Mode, info: dict[str, Any]) -> Any:
    import wandb

    config = dataclasses.asdict(run) | info
    text = json.dumps(config, default=str)
    for name, value in os.environ.items():
        if re.search(r"(KEY|TOKEN|SECRET|PASSWORD)$", name) and len(value) >= 8 and value in text:
            raise ValueError(f"the configuration contains the value of {name}; nothing was sent")
    stored = out / "wandb_id"
    # with tags, resuming on the server would remove those that were added there
    tags = tags_of(run) if mode == "offline" or not stored.exists() else None
    if not stored.exists():
        write_whole(stored, (os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)).encode())
    return wandb.init(
        project=run.track.project,
        name=run.track.name or out.resolve().name,
        id=stored.read_text().strip(),
        group=os.environ.get("WANDB_RUN_GROUP") or group_of(run),
        tags=tags,
        resume="allow",
        dir=str(out.resolve()),
        mode=mode,
        config=config,
        settings=wandb.Settings(
            console="off",
            silent=True,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    )
