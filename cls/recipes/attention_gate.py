"""Report 1: a gate on the ImageNet logits of ResNeXt-101 64×4d."""

from typing import Any

from cls.config import Augment, Data, Model, Optim, Run, Train

REPORT = "report 1"


def attention_gate() -> Run:
    """ResNeXt-101 64×4d, its 1000 ImageNet logits weighted by a learnt gate, then a small classifier.

    ``accelerate launch train.py attention-gate --data.path FOLDER``

    The backbone keeps its 1000-logit output layer; the gate is Linear(1000→500), Tanh, Linear(500→1000), Sigmoid,
    multiplied with the logits; the classifier is BatchNorm, Linear(1000→512), ReLU, Dropout .5, Linear(512→C).
    85,022,584 parameters for 100 classes. 100 epochs, lr 1e-4, batch 64, flip, then resize and normalise.
    The report shows accuracy only as a figure: a plateau at epochs 17 to 20, which falls near epoch 90.

    Silent in the report, taken from the program: AdamW with its default decay, Resize 256 + CenterCrop 256, mean and
    std 0.5, and the mean squared error on one-hot targets (``-ce`` for cross entropy). The seed is in neither; it is 0.
    Not reproduced, because they are defects of the program: flips in validation too; ``train()`` called only once, so
    that every epoch but the first runs in eval mode; an argmax over the whole batch in the validation accuracy.
    BatchNorm statistics are those of micro-batches of 16; ``-code`` takes them over all 64.
    """
    return Run(
        recipe="attention-gate",
        data=Data(size=256, eval_frame="center", crop_pct=1.0, normalize="half"),
        augment=Augment(order=("hflip", "frame"), frame="center", hflip=0.5),
        model=Model(backbone="resnext101_64x4d", weights="DEFAULT", gate=500, head="bn 512 relu dropout:0.5"),
        optim=Optim(name="adamw", lr=1e-4, lr_batch=64, weight_decay=0.01, loss="mse", schedule="fixed"),
        train=Train(epochs=100, batch=64, micro_batch=16),
    )


# name: what it is, and what it changes
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention-gate-ce": ("cross entropy instead of the squared error", {"optim": {"loss": "ce"}}),
    "attention-gate-deep": (
        "'ResNeXtL', one more hidden layer: 1024, 512 (report: worse; 86,059,896 parameters)",
        {"model": {"head": "bn 1024 relu dropout:0.5 512 relu dropout:0.5"}},
    ),
    "attention-gate-plain": (
        "no gate, only the output layer changed (report: 'the result was quite good')",
        {"model": {"gate": 0, "head": ""}},
    ),
    "attention-gate-code": (
        "the program: BatchNorm statistics over the whole batch of 64",
        {"train": {"micro_batch": 64}},
    ),
}
