"""train.py with a record of what each rank was given: ids, pixels, mixed images and targets of every micro-batch."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import train
from cls.data.dataset import TrainDataset
from cls.data.loader import Loader
from cls.evaluation.inference import Predictor
from cls.transforms.pipeline import Renderer

trace: list[dict[str, Any]] = []
decoded = 0


def sha(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def traced_batches(self: Loader, source: Any, indices: Any) -> Iterator[Any]:
    for batch in batches(self, source, indices):
        if isinstance(source, TrainDataset):
            trace.append({"rows": batch.rows, "draws": batch.indices, "pixels": sha(batch.pixels)})
        yield batch


def traced_partners(size: int, seed: int, step: int, index: int) -> torch.Tensor:
    trace[-1] |= {"step": step, "index": index}
    return pick(size, seed, step, index)


def traced_mix(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = mix(*args)
    trace[-1] |= {"images": sha(images), "targets": sha(targets)}
    return images, targets


def traced_render(self: Any, *args: Any) -> Any:
    global decoded
    decoded += 1
    return render(self, *args)


def traced_predict(*args: Any, **kwargs: Any) -> Any:
    before = decoded
    result = predict(*args, **kwargs)
    globals()["decoded"] = before  # count training images only
    return result


batches, pick, mix, predict = Loader.batches, train.partners, train.mix, Predictor.predict
render = Renderer.render
train.partners, train.mix, Predictor.predict = traced_partners, traced_mix, traced_predict
Loader.batches, Renderer.render = traced_batches, traced_render

if __name__ == "__main__":
    arguments = sys.argv[1:]
    leave = train.World.close

    def close(world: Any) -> None:
        record = {"world": world.size, "rank": world.rank, "decoded": decoded, "trace": trace}
        out = Path(arguments[arguments.index("--out") + 1])
        (out / f"trace-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(record))
        leave(world)

    train.World.close = close
    train.main(arguments)
