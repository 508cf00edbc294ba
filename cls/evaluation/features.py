"""What the output layer of a network receives: the features of an image."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cls.data.dataset import ViewDataset
from cls.data.loader import Batch, batches, worker_count
from cls.data.readers import Images
from cls.evaluation.inference import Predictor
from cls.models.build import output_layer
from cls.transforms.ops import view_ops


def features_of(predictor: Predictor, images: Images, rows: Sequence[int]) -> Iterator[tuple[Tensor, Batch]]:
    """Features b f, fp32 on the CPU, of one batch of ``rows`` after another, in order, and the batch.

    One plain view in evaluation mode, on this process alone; a corrupt image has the features of a black one.
    """
    model, run, device = predictor.model.eval(), predictor.run, predictor.prepare.mean.device
    frame, size = run.data.evaluated, run.train.eval_batch
    data = ViewDataset(images, view_ops("identity", frame), frame.size, run.seed, "identity", frame.exact_order)
    slices = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    inputs = list[Tensor]()
    hook = output_layer(model, run.model).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        for batch in batches(data, slices, worker_count(run.data.workers, 1), size, device):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=run.train.precision == "bf16"):
                model(predictor.prepare(batch))
            yield inputs.pop().float().flatten(1).cpu(), batch
    finally:
        hook.remove()
