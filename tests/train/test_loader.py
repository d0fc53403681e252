"""Positions, shares and prefetching: every row once, in an order that nothing but the key decides."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import TrainingError
from train.loader import Resident, Share, bounds, dealt, permutation, prefetched, steps_of


class Numbers:
    """A split whose batch is its row numbers."""

    def __init__(self, sizes) -> None:
        self.lengths = np.asarray(sizes)

    def __len__(self) -> int:
        return len(self.lengths)

    def sizes(self, rows):
        return self.lengths[rows]

    def batch(self, rows):
        return rows.tolist()


def epoch_of(sizes, global_batch: int, world: int, seed: int = 0, epoch: int = 0, start: int = 0, micro: int = 1):
    """Per rank the list of (position, micro-batches)."""
    shares = [Share(global_batch, seed, rank, world, micro) for rank in range(world)]
    return [[(p.position, p.batches) for p in Resident(Numbers(sizes), share).epoch(epoch, start)] for share in shares]


SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=60)


class TestResident:
    @given(
        SIZES, st.integers(1, 12), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1), st.integers(0, 9)
    )
    def test_every_row_once_in_equal_steps(self, sizes, global_batch, world, micro, seed, epoch):
        if len(sizes) < global_batch or global_batch < world or len(sizes) < world * steps_of(len(sizes), global_batch):
            return
        steps = steps_of(len(sizes), global_batch)
        ranks = epoch_of(sizes, global_batch, world, seed, epoch, micro=micro)
        assert [[p for p, _ in rank] for rank in ranks] == [list(range(steps))] * world
        for step in range(steps):
            shares = [len(rows) for rank in ranks for rows in rank[step][1]]
            assert max(shares) - min(shares) <= 1
            assert min(shares) >= 1
            assert sum(shares) <= global_batch
            assert len({len(rank[step][1]) for rank in ranks}) == 1  # as many micro-batches on every rank
        used = [row for rank in ranks for _, micros in rank for rows in micros for row in rows]
        assert sorted(used) == list(range(len(sizes)))

    @given(st.lists(st.integers(1, 50), min_size=9, max_size=60), st.integers(4, 9), st.integers(0, 12))
    def test_resuming_gives_the_rest_of_the_same_epoch(self, sizes, global_batch, start):
        whole = epoch_of(sizes, global_batch, 1, epoch=3)
        assert epoch_of(sizes, global_batch, 1, epoch=3, start=start) == [rank[start:] for rank in whole]

    def test_global_batches_do_not_depend_on_the_number_of_workers(self):
        sizes = list(range(1, 41))
        one, three = epoch_of(sizes, 10, 1), epoch_of(sizes, 10, 3, micro=2)
        for step in range(4):
            together = [row for rank in three for rows in rank[step][1] for row in rows]
            assert sorted(one[0][step][1][0]) == sorted(together)

    def test_epochs_and_seeds_differ(self):
        orders = {str(epoch_of([1] * 30, 10, 1, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
        assert len(orders) == 4

    def test_more_workers_than_rows(self):
        with pytest.raises(TrainingError, match=r"3 training rows in 2 steps for 2 workers: lower training\.workers"):
            epoch_of([1, 1, 1], 2, 2)

    def test_a_batch_larger_than_the_split(self):
        with pytest.raises(TrainingError, match=r"training\.batch_size 4 exceeds the 3 training rows: lower it to 3"):
            epoch_of([1, 1, 1], 4, 1)

    def test_tokens_per_rank_on_lengths_as_in_logs(self):
        """Zipf-long sequences, 256 a rank: every step within 5 % of the mean."""
        sizes = np.minimum(np.random.default_rng(0).zipf(1.7, 20_000) + 1, 50)
        ranks = epoch_of(sizes, 1024, 4)
        for step in range(steps_of(len(sizes), 1024)):
            tokens = np.array([sizes[rank[step][1][0]].sum() for rank in ranks])
            assert abs(tokens / tokens.mean() - 1).max() < 0.05


class TestParts:
    @given(st.integers(500, 10_000), st.integers(1, 500))
    def test_batches_cover_the_epoch_and_are_of_one_size(self, rows, global_batch):
        steps = steps_of(rows, global_batch)
        places = [place for p in range(steps) for place in range(rows)[bounds(p, rows, steps)]]
        sizes = {len(range(rows)[bounds(p, rows, steps)]) for p in range(steps)}
        assert places == list(range(rows))
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= global_batch

    def test_dealing_by_hand(self):
        # Largest first, forth and back: 9 8 | 7 6 | 5 to parts 0 1 | 1 0 | 0.
        assert dealt(np.array([5, 9, 7, 6, 8]), 2).tolist() == [0, 0, 1, 0, 1]
        # Three rows are too few for four parts of two ranks: one micro-batch each.
        assert dealt(np.array([3, 1, 2]), 2, micro=2).tolist() == [0, 1, 1]

    @given(st.integers(1, 200), st.integers(0, 9), st.integers(0, 9))
    def test_a_permutation_of_the_key_alone(self, rows, seed, epoch):
        order = permutation(rows, seed, epoch)
        assert sorted(order.tolist()) == list(range(rows))
        assert order.tolist() == permutation(rows, seed, epoch).tolist()


class TestPrefetched:
    def test_the_same_values_in_order(self):
        assert list(prefetched(iter(range(50)), 3)) == list(range(50))

    def test_errors_arrive_where_the_values_are_used(self):
        def broken():
            yield 1
            raise TrainingError("no more")

        source = prefetched(broken(), 2)
        assert next(source) == 1
        with pytest.raises(TrainingError, match="no more"):
            next(source)

    def test_whoever_stops_early_leaves_no_thread(self):
        before = threading.active_count()
        source = prefetched(iter(range(10**9)), 2)
        assert next(source) == 0
        source.close()
        assert threading.active_count() == before
