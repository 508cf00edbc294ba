"""What `cls pack` can be asked for; without libraries, so that --help comes at once."""

from dataclasses import dataclass

"""In a shard's footer: offset and size of each image's bytes in the file, as base64 of little-endian int64 pairs."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How images are packed; another value of any field gives other shards."""

    short: int = 0
    """Reduce the short side of larger images to this many pixels, as JPEG; 0 keeps every file's bytes as they are."""
    quality: int = 90
    """JPEG quality of reduced images, 1 to 95."""
    shard_mb: int = 256
    """Size of a shard file, MB, about."""
    val_fraction: float = 0.1
    """Share of the training images held out (stratified) when the data has no validation split."""
    seed: int = 0
    """Decides what is held out, and the order of the rows."""
    image_column: str = ""
    """Column with the images in parquet, arrow or hub data; empty: found by type, then by name."""
    labels: tuple[str, ...] = ()
    """Label files of image files, as train.py's --data.labels: train.csv, or val=solution.csv."""
    id_column: str = ""
    """Column of the label files with the images' names; empty: the one whose values match them."""
    label_column: str = ""
    """Column with the labels in parquet, arrow or hub data or in the label files; member (txt) or key (json.class) of a
    webdataset; empty: found by type and name."""
    label_pattern: str = ""
    """Regular expression whose one group is the class in an image file's name, from its start: '(.+)_[0-9]+'."""

    def __post_init__(self) -> None:
        if self.short < 0:
            raise ValueError(f"--short is {self.short}: it must be 0 (no change) or a number of pixels")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"--quality is {self.quality}: it must be from 1 to 95")
        if self.shard_mb < 1:
            raise ValueError(f"--shard-mb is {self.shard_mb}: it must be 1 or more")
