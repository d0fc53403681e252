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


def logged(rows: int):
    """Lengths as in adrec-baby: median 4, at most 50."""
    return np.minimum(np.random.default_rng(0).zipf(1.7, rows) + 2, 50)


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
        refusal = r"3 training rows in 2 steps for 2 workers: lower training\.workers"
        with pytest.raises(TrainingError, match=refusal):
            epoch_of([1, 1, 1], 2, 2)
        with pytest.raises(TrainingError, match=refusal):  # at the start, not when the run has grown
            Resident(Numbers([1, 1, 1]), Share(2, 0, rank=0, world=1, most=2))

    def test_a_batch_larger_than_the_split(self):
        with pytest.raises(TrainingError, match=r"training\.batch_size 4 exceeds the 3 training rows: lower it to 3"):
            epoch_of([1, 1, 1], 4, 1)

    @pytest.mark.parametrize(
        ("batch", "world", "micro"),
        [(64, 4, 1), (64, 2, 2), (128, 8, 1), (256, 8, 1), (256, 4, 4), (1024, 4, 1), (1024, 8, 8), (4096, 64, 1)],
    )
    def test_tokens_per_rank_on_lengths_as_in_logs(self, batch, world, micro):
        """Zipf-long sequences: every rank and micro-batch of every step within 5 % of the mean."""
        sizes = logged(20 * batch)
        ranks = epoch_of(sizes, batch, world, micro=micro)
        for step in range(20):
            tokens = np.array([[sizes[rows].sum() for rows in rank[step][1]] for rank in ranks])
            assert tokens.shape == (world, micro)
            # A row longer than a part's mean cannot be shared out.
            if sizes[[row for rank in ranks for rows in rank[step][1] for row in rows]].max() <= tokens.mean():
                assert abs(tokens / tokens.mean() - 1).max() < 0.05
            per_rank = tokens.sum(1)
            assert abs(per_rank / per_rank.mean() - 1).max() < 0.05


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
        # Largest first, to the lightest: 9 and 8 to parts 0 and 1, 7 to 1 (15), 6 to 0 (15), 5 to 0.
        assert dealt(np.array([5, 9, 7, 6, 8]), 2).tolist() == [0, 0, 1, 0, 1]
        # One long row outweighs all others.
        assert dealt(np.array([1, 50, 2, 3]), 2).tolist() == [1, 0, 1, 1]
        # Nothing weighs anything: every part has a row all the same.
        assert set(dealt(np.zeros(5, np.int64), 3).tolist()) == {0, 1, 2}
        # Three rows are too few for four parts of two ranks: one micro-batch each.
        assert dealt(np.array([3, 1, 2]), 2, micro=2).tolist() == [0, 1, 1]

    @given(SIZES, st.integers(1, 6), st.integers(1, 4))
    def test_parts_differ_by_a_row_at_most(self, sizes, world, micro):
        if len(sizes) < world:
            return
        part = dealt(np.array(sizes), world, micro)
        parts = world * min(micro, len(sizes) // world)
        loads = np.bincount(part, sizes, parts)
        assert set(part.tolist()) == set(range(parts))
        heaviest = np.array(sizes)[part == loads.argmax()]
        assert len(heaviest) == 1 or loads.max() - loads.min() <= heaviest.min()

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
