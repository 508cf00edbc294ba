"""What ``cls export`` can be asked for; without libraries, so that --help comes at once."""

from dataclasses import dataclass
from typing import Literal

Format = Literal["safetensors", "onnx"]
Input = Literal["float", "uint8"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is written, and which images it is checked on."""

    format: tuple[Format, ...] = ("safetensors",)
    """safetensors: model.safetensors for timm or torchvision (or cls, where the attention is its own); onnx: model.onnx
    with any batch size, which needs the extra 'onnx'; or both. config.json is always written."""
    input: Input = "float"
    """Input of model.onnx: float is images b 3 h w, float32, normalised; uint8 is pixels b h w 3, RGB, 0 to 255, which
    the network normalises itself. Both framed as config.json says."""
    images: str = ""
    """Images to compare the logits on; empty: the validation split of the run's own data."""
    count: int = 100
    """Compare on this many of them, evenly spread."""

    def __post_init__(self) -> None:
        if not self.format:
            raise ValueError("--format is empty: name safetensors, onnx or both")
        if self.count < 1:
            raise ValueError(f"--count must be at least 1, found {self.count}")
