"""The report page's lines."""

from itertools import pairwise

import numpy as np
import pytest

from cls.evaluation.report.charts import POINTS, thin


@pytest.mark.parametrize("length", [POINTS + 1, 2 * POINTS - 1, 3 * POINTS + 7])
def test_a_long_line_is_means_of_its_parts_whatever_their_sizes(length: int) -> None:
    rng = np.random.default_rng(0)
    x, y = np.arange(length, dtype=float), rng.normal(size=length)
    ends = [int(end) for end in np.linspace(0, length, POINTS + 1)]
    parts = [slice(a, b) for a, b in pairwise(ends)]
    assert len({part.stop - part.start for part in parts}) == 2  # of two sizes
    found = thin(x.tolist(), y.tolist())
    assert found[0] == pytest.approx([x[part].mean() for part in parts])
    assert found[1] == pytest.approx([y[part].mean() for part in parts])
