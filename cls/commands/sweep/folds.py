"""Cross-validation: the folds of a row as one set of predictions, in which no image was trained on."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cls.commands.sweep.members import Member
from cls.evaluation.metrics import accuracy
from cls.evaluation.predictions import joined, write_parquet
from cls.evaluation.run_record import RunRecord
from cls.evaluation.stats import wilson


def write_folds(stem: Path, members: Sequence[Member]) -> dict[str, Any]:
    """Write the validation predictions of all folds of one seed to STEM.parquet, for ``cls compare``.

    Returns the file, the accuracy with its 95 % interval (Wilson), and the command that predicts with all of them; {}
    as long as a fold is missing, or where a class is missing in the training images of some fold.
    """
    if any(member.state != "done" for member in members):
        return {}
    found = [RunRecord(member.path).val for member in members]
    whole = [p for p in found if p is not None]
    if len(whole) < len(members) or len({p.classes for p in whole}) > 1:
        why = "their classes differ" if len(whole) == len(members) else "predictions/val.parquet is missing in one"
        print(f"{stem.name}: the folds were not joined, since {why}", file=sys.stderr)
        return {}
    together, file = joined(whole), Path(f"{stem}.parquet")
    if twice := len(together.ids) - len(set(together.ids)):
        print(f"{stem.name}: the folds were not joined, since {twice} images are in several of them", file=sys.stderr)
        return {}
    try:
        write_parquet(file, together)
    except OSError as error:
        print(f"{file.name} was not written into {file.parent} ({error.strerror})", file=sys.stderr)
        return {}
    share = accuracy(together)
    low, high = wilson(share, len(together.ids))
    predict = shlex.join(["cls", "predict", *(str(member.path) for member in members)])
    return {"predictions": str(file), "images": len(together.ids), "accuracy": share, "low": low, "high": high,
            "predict": f"{predict} IMAGES"}  # fmt: skip
