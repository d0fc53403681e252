"""What a worker opens: loaders by size, layouts by model, and inputs that do not fit, each by name."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.errors import DataRefused, TrainingError
from tests.train.tables import AS_OF, write_samples, write_sequences
from tests.train.test_loop import ADREC, CHUNKS, SASREC, TARGETS, job, rows_of
from train.configs import DNNConfig
from train.job import Job, opened
from train.loader import Resident
from train.settings import TrainingSettings
from train.streaming import Streamed


def changed(what: Job, **changes) -> Job:
    return Job(**{**vars(what), **changes})


def test_a_small_split_is_resident_and_a_large_one_streamed(tmp_path):
    with opened(job(tmp_path), 0, 1) as splits:
        assert isinstance(splits.train, Resident)
        assert (splits.rows, len(splits.valid)) == (20, 3)
    with opened(job(tmp_path, resident_gb=1e-9, streams=1), 0, 1) as splits:
        assert isinstance(splits.train, Streamed)
        assert splits.rows == 20
        assert sum(int(b.counts["sequences"]) for step in splits.train.epoch(0) for b in step.batches) == 20
    with opened(job(tmp_path, resident_gb=1e-9, loader="resident"), 0, 1) as splits:
        assert isinstance(splits.train, Resident)


def test_ranking_samples_are_streamed_too(tmp_path):
    job(tmp_path)
    write_samples(tmp_path, rows_of(20) + [{**r, "split": "valid"} for r in rows_of(4)])
    streamed = job(tmp_path, DNNConfig(), loader="streaming", streams=1)
    with opened(changed(streamed, versions={"samples": 0, "fields": 0}), 0, 1) as splits:
        labels = [float(v) for step in splits.train.epoch(0) for b in step.batches for v in b.label_B]
        assert sorted(labels) == [0.0] * 10 + [1.0] * 10


def test_a_model_that_needs_the_padding_gets_left_padded_rows(tmp_path):
    for seen in (False, True):
        with opened(job(tmp_path, ADREC.model_copy(update={"seen_padding": seen})), 0, 1) as splits:
            (batch,) = next(splits.train.epoch(0)).batches
            assert (len(batch.items_BL) == int(batch.counts["sequences"])) == seen


def test_ranks_of_a_node_share_one_map(tmp_path):
    what = job(tmp_path)
    with opened(what, 0, 2) as one, opened(what, 1, 2) as two:
        assert len(list((tmp_path / "maps").glob("*/values.npy"))) == 2  # train and valid, once each
        assert one.train.data.items.values.tolist() == two.train.data.items.values.tolist()
    assert list((tmp_path / "maps").glob("*/values.npy")) == []


@pytest.mark.parametrize(
    ("settings", "changes", "error", "message"),
    [
        ({}, {"versions": {"sequences": 7}}, DataRefused, "sequences.*no version 7.*vacuumed or never written"),
        ({}, {"as_of": "2031-01-01"}, TrainingError, "nothing to train on in split 'valid' as of 2031-01-01"),
        ({}, {"catalogue": 9}, TrainingError, "item index 9, but the vocabulary ends before 9"),
        ({"loader": "streaming", "streams": 1}, {"catalogue": 9}, TrainingError, "item index 9"),
        ({"workers": (1, 7)}, {}, TrainingError, "20 training rows in 3 steps for 7 workers"),
        ({"resident_gb": 1e-9, "streams": 1, "workers": (1, 2)}, {}, TrainingError, "1 streams for 2 workers"),
        ({"batch_size": 21}, {}, TrainingError, r"training\.batch_size 21 exceeds the 20 training rows"),
        ({"loader": "streaming", "streams": 2}, {}, TrainingError, r"lower training\.streams"),
        ({"loader": "streaming", "streams": 1, "batch_size": 21}, {}, TrainingError, r"training\.batch_size 21"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, settings, changes, error, message):
    what = changed(job(tmp_path, SASREC, **settings), **changes)
    with pytest.raises(error, match=message), opened(what, 0, 1) as splits:
        list(splits.train.epoch(0))


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_a_split_without_one_target(tmp_path, loader):
    write_sequences(tmp_path, CHUNKS, TARGETS, {i: [False] * len(items) for i, items in enumerate(CHUNKS)})
    what = job(tmp_path, loader=loader, streams=1)
    message = f"table sequences version 0 has nothing to train on in split 'train' as of {AS_OF}"
    with pytest.raises(TrainingError, match=message), opened(what, 0, 1):
        pass


def test_a_target_beyond_the_catalogue_is_refused_unless_it_is_unknown(tmp_path):
    write_sequences(tmp_path, CHUNKS, [*TARGETS, ([2], 0, False), ([2], 12, False)])
    with opened(job(tmp_path), 0, 1) as splits:
        assert len(splits.valid) == 5
    write_sequences(tmp_path, CHUNKS, [*TARGETS, ([2], 12, True)])
    later = changed(job(tmp_path), versions={"sequences": 1})
    with (
        pytest.raises(TrainingError, match="version 1 has item index 12, but the vocabulary ends"),
        opened(later, 0, 1),
    ):
        pass


def test_a_streaming_run_needs_a_stream_for_every_worker_it_may_grow_to():
    with pytest.raises(ValueError, match="streams 8 leaves some of 16 workers without one; raise streams or lower"):
        TrainingSettings(workers=(1, 16), loader="streaming", streams=8)
    assert TrainingSettings(workers=(1, 8), loader="streaming", streams=8).max_workers == 8
    assert TrainingSettings(workers=(1, 16), loader="resident", streams=8).max_workers == 16


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_a_file_that_was_vacuumed(tmp_path: Path, loader):
    write_sequences(tmp_path, CHUNKS, TARGETS)
    what = job(tmp_path, loader=loader, streams=1)
    for file in (tmp_path / "sequences").glob("as_of=*/split=train/*.parquet"):
        assert pq.read_metadata(file).num_rows == 20
        file.unlink()
    with pytest.raises(DataRefused, match="vacuumed"), opened(what, 0, 1) as splits:
        list(splits.train.epoch(0))
