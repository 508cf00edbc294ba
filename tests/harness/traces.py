"""What each rank of a run was given: ids, pixels, mixed images and targets of every micro-batch, in trace-RANK.json."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import train
from cls.data.dataset import TrainDataset
from cls.data.loader import Loader
from cls.evaluation.inference import Predictor
from cls.transforms.pipeline import Renderer


def sha(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def record(argv: list[str]) -> None:
    """Put the record into train.py of this process."""
    trace: list[dict[str, Any]] = []
    decoded = 0
    batches, partners, mix, predict = Loader.batches, train.partners, train.mix, Predictor.predict
    render, close, loss, report = Renderer.render, train.World.close, train.loss_per_image, train.write_report

    def traced_batches(self: Loader, source: Any, indices: Any) -> Iterator[Any]:
        for batch in batches(self, source, indices):
            if isinstance(source, TrainDataset):
                trace.append({"rows": batch.rows, "draws": batch.indices, "pixels": sha(batch.pixels)})
            yield batch

    def traced_partners(size: int, seed: int, step: int, index: int) -> torch.Tensor:
        trace[-1] |= {"step": step, "index": index}
        return partners(size, seed, step, index)

    def traced_mix(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = mix(*args)
        trace[-1] |= {"images": sha(images), "targets": sha(targets)}
        return images, targets

    def traced_loss(logits: torch.Tensor, targets: torch.Tensor, *rest: Any) -> torch.Tensor:
        classes = logits.detach().numpy().argmax(1)  # of one micro-batch: with exact a chunk has no more
        trace[-1]["right"] = sum(targets[i, c].item() == targets[i].max().item() for i, c in enumerate(classes))
        return loss(logits, targets, *rest)

    def traced_render(self: Any, *args: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return render(self, *args)

    def traced_predict(*args: Any, **kwargs: Any) -> Any:
        nonlocal decoded
        before = decoded
        result = predict(*args, **kwargs)
        decoded = before  # count training images only
        return result

    def traced_report(*args: Any) -> Any:
        nonlocal decoded
        before = decoded
        result = report(*args)
        decoded = before  # nor those of its heat maps
        return result

    def traced_close(world: Any) -> None:
        found = {"world": world.size, "rank": world.rank, "decoded": decoded, "trace": trace}
        out = Path(argv[argv.index("--out") + 1])
        (out / f"trace-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
        close(world)

    train.partners, train.mix, Predictor.predict = traced_partners, traced_mix, traced_predict  # type: ignore[assignment]  # replaced for the trace
    train.write_report = traced_report
    train.loss_per_image = traced_loss  # type: ignore[assignment]  # as above
    Loader.batches, Renderer.render = traced_batches, traced_render  # type: ignore[method-assign]  # as above
    train.World.close = traced_close  # type: ignore[method-assign]  # as above
