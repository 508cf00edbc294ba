"""The default run: the embedded digits, no data, network or GPU needed."""

from typing import Any

from cls.config import Augment, Data, Model, Optim, Run, Train

REPORT = "–"


def digits() -> Run:
    """The 1797 embedded handwritten digits, a 14-layer ResNeXt from scratch.

    ``accelerate launch train.py``

    scikit-learn's digits (8×8 grey, 10 classes) at 32×32; ResNeXt with one block per stage, 5,294,666 parameters; small
    rotations and shifts, no flips (a mirrored digit is none). 8 micro-batches of 16, so up to 8 processes.
    """
    return Run(
        recipe="digits",
        data=Data(path="digits", size=32, eval_frame="squash"),
        augment=Augment(frame="squash", rotate=10.0, translate=0.08),
        model=Model(backbone="resnext14_8x8d", weights="none"),
        optim=Optim(
            name="adamw", lr=3e-3, lr_batch=128, weight_decay=0.05, schedule="warmup-cosine", warmup=0.5
        ),
        train=Train(epochs=4, batch=128, micro_batch=16),
    )  # fmt: skip


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {}
