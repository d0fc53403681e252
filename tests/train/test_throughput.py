"""What a run says of its speed, against figures worked out by hand on a clock that the test moves."""

import itertools
from types import SimpleNamespace
from unittest.mock import patch

import psutil
import pytest
import torch

from tests.train.models.contract import PACKED, impressions, shifted
from train import throughput
from train.throughput import Meter, matmul_rate

CPU = torch.device("cpu")
#: 10 events in 18 places.
EVENTS, PLACES = 10, 18


class Clock:
    """Stands in for the module's `time`."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(throughput, "time", stopped)
    return stopped


def loaded(clock: Clock, count: int, seconds: float):
    """Steps of one micro-batch, each of which takes so long to come."""
    for _ in range(count):
        clock.now += seconds
        yield [PACKED]


def test_an_epoch_by_hand(clock):
    """Two steps of three rows on two ranks: each half a second of waiting and a second and a half of work."""
    meter = Meter(CPU, rate=1000.0)
    meter.rehearsed(500, PACKED)  # 50 FLOPs for each of its events
    for batches in meter.waiting(loaded(clock, 2, 0.5)):
        meter.count(batches)
        clock.now += 1.5
    figures = meter.figures(world=2, rows=3)
    peak = figures.pop("peak_memory_gb")
    assert figures == {
        "examples_per_second": 2 * 3 / 4,
        "tokens_per_second": 2 * EVENTS * 2 / 4,
        "padding_efficiency": EVENTS / PLACES,
        "data_wait_share": 1 / 4,
        "matmul_share": 50 * 2 * EVENTS / 4 / 1000,
    }
    assert 0.05 < peak < psutil.virtual_memory().total / 2**30  # torch alone is more than 50 MB


def test_a_new_epoch_counts_from_zero_and_knows_the_flops(clock):
    meter = Meter(CPU, rate=10.0)
    meter.rehearsed(500, PACKED)
    list(meter.waiting(loaded(clock, 3, 1.0)))
    meter.count([PACKED])
    meter.restart()
    clock.now += 5
    figures = meter.figures(1, 3)
    assert {figures.pop(name) for name in figures.keys() - {"peak_memory_gb"}} == {0.0}
    meter.count([PACKED])
    assert meter.figures(1, 3)["tokens_per_second"] == EVENTS / 5
    assert meter.figures(1, 3)["padding_efficiency"] == EVENTS / PLACES
    assert meter.figures(1, 3)["matmul_share"] == 500 / 5 / 10


def test_micro_batches_are_one_step(clock):
    """Left-padded rows of 6 with 6, 3 and 1 events beside the packed ones."""
    meter = Meter(CPU, 1.0)
    meter.count([PACKED, shifted([2, 3, 4, 5, 6, 7, 8], [9, 10, 1, 12], [3, 5])])
    clock.now += 2
    figures = meter.figures(1, 6)
    assert figures["examples_per_second"] == 6 / 2
    assert figures["padding_efficiency"] == (EVENTS + 10) / (PLACES + 18)


def test_a_ranking_batch_counts_its_rows(clock):
    meter = Meter(CPU, 10.0)
    meter.rehearsed(80, impressions(20))
    meter.count([impressions(20), impressions(12)])
    clock.now += 4
    figures = meter.figures(2, 64)
    assert figures["tokens_per_second"] == 32 * 2 / 4
    assert figures["padding_efficiency"] == 1
    assert figures["matmul_share"] == 4 * 32 / 4 / 10


@pytest.mark.parametrize("rehearsed", [False, True])
def test_no_matmul_share_without_a_token_to_share_it_over(clock, rehearsed):
    meter = Meter(CPU, 1.0)
    if rehearsed:
        meter.rehearsed(500, shifted([]))
    meter.count([PACKED])
    clock.now += 1
    assert "matmul_share" not in meter.figures(1, 1)


def test_the_rate_is_that_of_the_fastest_product(monkeypatch):
    """Products of 2 · 8³ FLOPs in 3, 2, 0.5, 1, 4 and 2 seconds."""
    ticks = itertools.accumulate([0.0, 3, 9, 2, 9, 0.5, 9, 1, 9, 4, 9, 2])
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setitem(throughput._SIZE, "cpu", 8)
    assert matmul_rate(CPU, "float32") == 2 * 8**3 / 0.5


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_the_rate_is_of_the_precision_that_the_run_has(monkeypatch, precision, dtype):
    monkeypatch.setitem(throughput._SIZE, "cpu", 64)
    with patch.object(torch, "ones", wraps=torch.ones) as ones:
        assert matmul_rate(CPU, precision) > 0
    assert {call.kwargs["dtype"] for call in ones.call_args_list} == {dtype}
