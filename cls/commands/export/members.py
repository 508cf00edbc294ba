"""``cls export`` of several runs: each as one run is exported, an index, and the code that averages them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cls.commands.export.run import export
from cls.commands.options import ExportOptions
from cls.evaluation.ensemble import other_classes, reject_twice
from cls.evaluation.ensemble_record import EXPORTS, FILE, RULE, check_place
from cls.evaluation.model_file import read_header
from cls.evaluation.trained_model import weights_file
from cls.runtime.files import sha256, write_whole
from cls.runtime.paths import writing
from cls.runtime.signals import StopSignal


def export_members(paths: Sequence[str], to: Path, options: ExportOptions, stop: StopSignal) -> dict[str, Any]:
    """Write to/member-1, member-2, … and, once all are verified, ensemble.json; the JSON document of the command."""
    if options.card or options.push:
        raise ValueError("--card and --push describe one network: export each run alone")
    check_place(to, EXPORTS)
    if (to / "model.safetensors").exists():
        raise ValueError(f"--to {to} holds an export of one run, with which it would be mixed: name another folder")
    reject_twice(paths)
    headers = [read_header(weights_file(path)) for path in paths]
    for path, (_, classes, _, _) in zip(paths, headers, strict=True):
        if text := other_classes(headers[0][1], classes):
            raise ValueError(f"{paths[0]} and {path} have other classes ({text}): a mean needs the same names")
    with writing("to", to):
        (to / FILE).unlink(missing_ok=True)  # of an earlier export: it would name what is replaced now
    names = [f"member-{number}" for number in range(1, len(paths) + 1)]
    documents = [export(path, to / name, options, stop) for path, name in zip(paths, names, strict=True)]
    members = [
        {
            "run": path, "file": f"{name}/model.safetensors", "sha256": sha256(weights_file(path)),
            "recipe": run.recipe, "seed": run.seed,
        }
        for name, path, (run, *_) in zip(names, paths, headers, strict=True)
    ]  # fmt: skip
    index = {"rule": RULE, "classes": headers[0][1]} | ({"members": members} if "safetensors" in options.format else {})
    with writing("to", to):
        write_whole(to / FILE, json.dumps(index, indent=1, ensure_ascii=False).encode() + b"\n")
    python = averaging(to, [next(iter(document["python"].values())) for document in documents])
    print(f"\n{python}", file=sys.stderr)
    return {"folder": str(to), "rule": RULE, "members": documents, "python": python}


def averaging(folder: Path, texts: Sequence[str]) -> str:
    """Code that makes ``probabilities``; each of ``texts`` makes a member's, and its ``classes``."""
    lines = []
    for number, text in enumerate(texts, 1):
        lines += [f"def member_{number}():", *(f"    {line}" if line else "" for line in text.split("\n")),
                  "    return probabilities, classes", ""]  # fmt: skip
    made = ", ".join(f"member_{number}()" for number in range(1, len(texts) + 1))
    lines += [
        "import json",
        f"classes = json.load(open({str(folder / FILE)!r}, encoding='utf-8'))['classes']",
        f"members = [{made}]",
        "",
        "def probabilities(path):  # an image file -> the probability of each of classes",
        "    found = [(member(path), names) for member, names in members]",
        "    return sum(p[[names.index(name) for name in classes]] for p, names in found) / len(found)",
    ]
    return "\n".join(lines)
