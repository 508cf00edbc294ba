"""Attention inside and after the backbone: CBAM and the gate on the logits."""

import torch
from einops import pack, rearrange, reduce
from torch import Tensor, nn

# b batch, c channels, h height, w width, k logits


class CBAM(nn.Module):
    """Convolutional block attention module (Woo et al. 2018, arXiv:1807.06521): features b c h w -> b c h w.

    Channels first: ``x * sigmoid(mlp(mean(x)) + mlp(max(x)))`` with one MLP c -> c/16 -> c shared by both branches;
    then places: ``x * sigmoid(conv7x7([mean over c, max over c]))``. No biases (report 2: 87,471,622 parameters).
    ``chained`` is report 2's program: the max branch gets the mean branch's *output*, ``m = mlp(mean(x))``, so the
    channel factor is ``sigmoid(m + mlp(m))`` (the maximum over one place is the value itself).
    """

    def __init__(self, channels: int, *, chained: bool = False) -> None:
        super().__init__()
        self.chained = chained
        hidden = channels // 16
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        # einops' "max" is amax: it has a deterministic backward on CUDA, an adaptive max pool has none
        average = self.mlp(reduce(features, "b c h w -> b c", "mean"))
        maximum = self.mlp(average if self.chained else reduce(features, "b c h w -> b c", "max"))
        features = features * rearrange(torch.sigmoid(average + maximum), "b c -> b c 1 1")

        mean, peak = reduce(features, "b c h w -> b h w", "mean"), reduce(features, "b c h w -> b h w", "max")
        maps, _ = pack([mean, peak], "b * h w")
        return features * torch.sigmoid(self.spatial(maps))


class LogitGate(nn.Module):
    """Report 1's gate: logits b k -> b k, ``logits * sigmoid(up(tanh(down(logits))))`` with widths k -> width -> k."""

    def __init__(self, logits: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(logits, width)
        self.up = nn.Linear(width, logits)

    def forward(self, logits: Tensor) -> Tensor:
        return logits * torch.sigmoid(self.up(torch.tanh(self.down(logits))))


def add_attention(net: nn.Module, cbam: tuple[int, ...], *, chained: bool, dropout3: float) -> None:
    """Append CBAM to the given stages (1 to 4) and dropout to stage 3, in that order.

    A stage is an ``nn.Sequential`` of blocks: the added parts are its last elements, so no pretrained key changes.
    """
    for number in sorted(cbam):
        stage = _stage(net, number, "model.cbam")
        norm = getattr(stage[-1], "bn3", None) or getattr(stage[-1], "bn2", None)  # of the block's last convolution
        if not isinstance(norm, nn.BatchNorm2d):
            raise ValueError(f"model.cbam: unknown width of layer{number} of {type(net).__name__}; use a ResNet")
        stage.append(CBAM(norm.num_features, chained=chained))
    if dropout3:
        _stage(net, 3, "model.dropout3").append(nn.Dropout(dropout3))


def _stage(net: nn.Module, number: int, field: str) -> nn.Sequential:
    stage = getattr(net, f"layer{number}", None)
    if not isinstance(stage, nn.Sequential):
        raise ValueError(
            f"{field}: {type(net).__name__} has no stage layer{number}; use a ResNet or ResNeXt, or turn {field} off"
        )
    return stage
