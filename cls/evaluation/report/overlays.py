"""Heat maps beside the most confident mistakes: what spoke for the predicted class, and what for the true one."""

from collections.abc import Callable

from PIL import Image

from cls.data.readers import Images
from cls.evaluation.heat_maps import Explained, Heat, explain, overlay
from cls.evaluation.inference import Predictor
from cls.evaluation.metrics import wrong
from cls.evaluation.predictions import Predictions
from cls.evaluation.report.thumbnails import SIDE, Overlays, address

MEANING = (
    "Heat maps (Grad-CAM): yellow where the network’s last features raise the score of a class most, on the image as "
    "the network sees it, in grey; each map by its own maximum."
)
ATTENTION = " Attention: the factor of the last CBAM at each place, from its lowest to its highest."


def heat_maps(
    load: Callable[[], Predictor], images: Images, p: Predictions, count: int
) -> tuple[dict[int, Overlays], str]:
    """Overlays of the ``count`` most confidently wrong images by row, and a sentence on what they show.

    ``load`` gives the network. What fails, as memory does, costs the maps and not the page: the sentence says why.
    """
    rows = wrong(p)[:count].tolist() if len(images) == len(p.ids) else []
    rows = [row for row in rows if images.name(row) == p.ids[row]]
    if not rows:
        return {}, ""
    try:
        found, _ = explain(load(), images, rows, p.labels[rows].tolist())
    except (ValueError, OSError, RuntimeError) as error:
        return {}, f"Without heat maps: {str(error).splitlines()[0]}."
    attends = any(one.attention is not None for one in found.values())
    return {row: _drawn(one) for row, one in found.items()}, MEANING + ATTENTION * attends


def _drawn(one: Explained) -> Overlays:
    return Overlays(*(_picture(one, heat) for heat in (one.predicted, one.labelled, one.attention)))


def _picture(one: Explained, heat: Heat | None) -> str:
    if heat is None or not heat.any():
        return ""
    return address(Image.fromarray(overlay(one.pixels, heat, SIDE)))
