"""Images as Hugging Face `datasets` decodes them: what a typical program reads, for comparison with our own reading."""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, Features, Image, Value

from cls.data.readers import Images


def decoded(split: Dataset | Images, rows: Sequence[int], transform: Callable[[Any], Any]) -> Dataset:
    """These rows as a map-style dataset with columns image and label; ``transform`` gets each batch, images decoded.

    ``transform``: from ``{"image": [PIL images], "label": [class indices]}`` to what the dataset's rows shall hold. A
    split that is no dataset itself (one that is streamed) is read, and lies in memory.
    """
    if isinstance(split, Dataset):
        table = split.select(rows).select_columns(["image", "label"])
    else:
        content = [{"bytes": bytes(data), "path": None} for data in split.read(rows)]  # type: ignore[arg-type]  # readable
        columns = {"image": content, "label": [int(split.labels[row]) for row in rows]}
        table = Dataset.from_dict(columns, features=Features({"image": Image(decode=False), "label": Value("int64")}))
    return table.cast_column("image", Image(decode=True)).with_transform(transform)
