"""Where the time of a run went."""

from cls.runtime.timer import KINDS
from cls.tracking.goodput import slowest


def clock(data: float, compute: float) -> dict[str, float]:
    return dict.fromkeys(KINDS, 100.0) | {"data": data, "compute": compute}


def test_the_slowest_rank_is_compared_with_the_median_of_all() -> None:
    """Ranks busy for 5, 9, 30 and 10 seconds: the third is 30 - 9.5 longer; the fastest does not decide."""
    assert slowest([clock(2, 3), clock(4, 5), clock(20, 10), clock(4, 6)]) == (2, 20.5)
    assert slowest([clock(1, 1)]) == (0, 0.0)
    assert slowest([clock(1, 1), clock(1, 1), clock(1, 1)])[1] == 0.0
