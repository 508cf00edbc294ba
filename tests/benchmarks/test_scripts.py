"""The benchmarks run to their end, at the smallest size: nothing else would notice when they stop working."""

from collections.abc import Callable

import pytest

from tests.benchmarks import bench_loop, bench_phone, bench_reduce, bench_save


@pytest.mark.integration
@pytest.mark.parametrize(
    ("run", "lines"),
    [
        (lambda: bench_loop.main("host", 32), ["resnet18, 64 / 16", "resnet50, 64 / 16"]),
        (lambda: bench_phone.main(2, 1), ["se-resnext     timm/end_to_end", "geometric mean timm/end_to_end"]),
        (lambda: bench_reduce.here(4), ["1 process(es), 4 micro-batches: exact / fast = "]),
        (lambda: bench_save.main("timm/test_resnet", 32), ["a save is ", "writing in the background: "]),
    ],
    ids=["loop", "phone", "reduce", "save"],
)
def test_a_benchmark_prints_its_figures(
    run: Callable[[], None], lines: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_loop, "ROUNDS", 1)
    monkeypatch.setattr(bench_reduce, "PAIRS", 1)
    monkeypatch.setattr(bench_save, "PAIRS", 1)
    run()
    out = capsys.readouterr().out
    assert all(line in out for line in lines), out
