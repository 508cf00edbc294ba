"""The loss per image, whether it is recognised, and the weights of the classes."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def loss_per_image(logits: Tensor, targets: Tensor, kind: str, weights: Tensor | None = None) -> Tensor:
    """Loss of each image (b): cross entropy with soft targets, or the squared error as a mean over classes."""
    logits = logits.float()
    if kind == "mse":
        errors = (logits - targets) ** 2
        return (errors if weights is None else errors * (weights * targets).sum(1, keepdim=True)).mean(1)
    terms = -targets * F.log_softmax(logits, dim=1)  # b c
    return (terms if weights is None else terms * weights).sum(1)


def right_per_image(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether each image is recognised (b, bool): of a mixed image, the class of its larger part."""
    return logits.argmax(1) == targets.argmax(1)


def class_weights(labels: np.ndarray, classes: int, power: float, device: torch.device) -> Tensor | None:
    """Weight of each class (c) ~ count^-power, scaled so that the mean over training images is 1; None at power 0."""
    if not power:
        return None
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = np.maximum(counts, 1) ** -power
    return torch.tensor(weights * counts.sum() / (weights * counts).sum(), dtype=torch.float32, device=device)
