"""Sharded tables against dense ones, on real ranks and, where nothing is exchanged, without any."""

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infra.errors import ArtifactError, TrainingError
from tests.train import sharded_ranks
from tests.train.sharded_ranks import CLIP, EPS, LEARNING_RATE, ROWS, SEED, SIZES, WIDTH, Towers, on_ranks, shares
from train import checkpoint
from train.ranking import target_ranks
from train.rowwise_adagrad import RowWiseAdagrad, clip_whole_gradient, scale_shards, shard_square_norm
from train.sharded import ShardedTable, load_shard, reader, shard_state, sharded_tables
from train.sharded_ranking import sharded_target_ranks

State = dict[str, Tensor]
Trained = tuple[Path, list[State]]


def whole(states: list[State], name: str = "weight") -> Tensor:
    """The table from the shards of all ranks."""
    rows = int(states[0]["layout"][0])
    table = torch.empty(rows, *states[0][name].shape[1:])
    for rank, state in enumerate(states):
        table[rank :: len(states)] = state[name]
    return table


def dense_towers() -> Towers:
    """The tests' model on an ordinary embedding that starts from the same rows."""
    start = ShardedTable(ROWS, WIDTH, std=0.5, seed=SEED).weight.detach()
    return Towers(nn.Embedding(ROWS, WIDTH, padding_idx=0, _weight=start.clone()))


def train_dense(steps: range) -> tuple[Towers, Tensor, Tensor]:
    """The same training on one process and one dense table; Adagrad by row as the formula says it."""
    model = dense_towers()
    accumulator, norms = [0.0] * ROWS, []
    for step in steps:
        batch = [torch.cat(parts) for parts in zip(*shares(step), strict=True)]
        model.zero_grad()
        (model(*batch) / len(batch[0])).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        gradient = model.table.weight.grad
        assert gradient is not None
        with torch.no_grad():
            for row in range(ROWS):
                g = gradient[row]
                accumulator[row] += float((g * g).sum()) / WIDTH
                model.table.weight[row] -= LEARNING_RATE * g / (math.sqrt(accumulator[row]) + EPS)
            for parameter in model.dense.parameters():
                assert parameter.grad is not None
                parameter.sub_(LEARNING_RATE * parameter.grad)
    return model, torch.tensor(accumulator), torch.tensor(norms)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """(folder, what two ranks ended with); their files after step 1 lie in the folder."""
    folder = tmp_path_factory.mktemp("two")
    return folder, on_ranks(2, folder, sharded_ranks.train, range(len(SIZES)), None, 1)


def assert_as_dense(states: list[State]) -> None:
    model, accumulator, norms = train_dense(range(len(SIZES)))
    torch.testing.assert_close(whole(states), model.table.weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whole(states, "sum"), accumulator, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(states[0]["dense.weight"], model.dense.weight.detach(), rtol=1e-5, atol=1e-6)
    last = norms[-len(states[0]["norms"]) :].double()
    torch.testing.assert_close(states[0]["norms"], last, rtol=1e-5, atol=1e-8)
    assert not whole(states)[0].any()


def test_two_ranks_train_as_one_dense_table_does(trained: Trained) -> None:
    _, states = trained
    assert_as_dense(states)
    assert torch.equal(states[0]["norms"], states[1]["norms"])
    assert (states[0]["norms"] > CLIP).any()
    assert [len(s["weight"]) for s in states] == [29, 28]


def test_a_run_goes_on_with_other_numbers_of_ranks(trained: Trained, tmp_path: Path) -> None:
    folder, _ = trained
    sharded_ranks.train(0, 1, tmp_path, range(2, 4), (folder, 2), 3)
    assert_as_dense(on_ranks(2, tmp_path, sharded_ranks.train, range(4, 6), (tmp_path, 1)))


def test_one_rank_needs_no_process_group(tmp_path: Path) -> None:
    assert_as_dense([sharded_ranks.train(0, 1, tmp_path, range(len(SIZES)))])


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[State]:
    """What three ranks say of a row outside the table, and their users' ranks."""
    return on_ranks(3, tmp_path_factory.mktemp("three"), sharded_ranks.refuse_and_rank)


def test_every_rank_hears_of_a_row_outside_the_table(three: list[State]) -> None:
    table = ShardedTable(ROWS, WIDTH)
    for rank, answer in enumerate(three):
        assert answer["told"] == 2
        assert torch.equal(answer["rows"], table.weight[rank:].detach())


def test_ranks_are_those_of_the_dense_table(three: list[State]) -> None:
    compared = 0
    for number, (e_VD, users, chunk) in enumerate(sharded_ranks.problems(3)):
        for rank, (u_BRD, target_B, history_BH) in enumerate(users):
            expected = target_ranks(u_BRD, e_VD, target_B, history_BH)
            assert three[rank][f"problem {number}"].tolist() == expected.tolist(), (number, rank)
            compared += len(expected)
            alone = ShardedTable(*e_VD.shape)
            alone.load_state_dict({"weight": e_VD})
            assert torch.equal(sharded_target_ranks(u_BRD, alone, target_B, history_BH, chunk), expected)
    assert compared > 100


@pytest.mark.parametrize("chunk", [None, 50])
def test_equal_rows_tie_wherever_they_lie(chunk: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    table = ShardedTable(2 + 5 * 41, 16)
    with torch.no_grad():
        table.weight[2:] = torch.randn(41, 16, generator=generator).repeat(5, 1)
    u_BRD = torch.randn(1, 2, 16, generator=generator).expand(5 * 41, 2, 16)
    ranks = sharded_target_ranks(u_BRD, table, torch.arange(2, table.rows), None, chunk).view(5, 41)
    assert torch.equal(ranks, ranks[0] + torch.arange(5)[:, None])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 20_000), st.integers(1, 7))
def test_rows_start_the_same_for_any_number_of_ranks(rows: int, world: int) -> None:
    states = [shard_state(ShardedTable(rows, 2, rank, world, seed=5)) for rank in range(world)]
    one = ShardedTable(20_000, 2, seed=5).weight.detach()
    assert torch.equal(whole(states), one[:rows])
    assert not one[0].any()
    assert not torch.equal(one[:rows][1:], ShardedTable(rows, 2, seed=6).weight.detach()[1:])


def test_the_start_has_the_asked_spread() -> None:
    rows = ShardedTable(20_000, 16, std=0.02).weight[1:]
    assert rows.std().item() == pytest.approx(0.02, rel=0.02)
    assert rows.mean().item() == pytest.approx(0, abs=2e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3, 2**16]))
def test_any_number_of_ranks_becomes_any_other(rows: int, before: int, after: int, at_once: int) -> None:
    old = [ShardedTable(rows, 3, rank, before, seed=1) for rank in range(before)]
    known = [RowWiseAdagrad([table.weight], 0.1) for table in old]
    for rank, (table, optimizer) in enumerate(zip(old, known, strict=True)):
        optimizer.accumulator(table.weight).copy_(torch.arange(rows)[rank::before])
    states = [shard_state(table, optimizer) for table, optimizer in zip(old, known, strict=True)]
    longest = 0

    def read(rank: int, name: str, start: int, stop: int) -> Tensor:
        nonlocal longest
        longest = max(longest, stop - start if name != "layout" else 0)
        return states[rank][name][start:stop]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.sharded._ROWS_PER_READ", at_once)
        for rank in range(after):
            table = ShardedTable(rows, 3, rank, after, seed=2)
            optimizer = RowWiseAdagrad([table.weight], 0.1)
            load_shard(table, optimizer, read)
            assert torch.equal(table.weight, ShardedTable(rows, 3, rank, after, seed=1).weight)
            assert optimizer.accumulator(table.weight).tolist() == list(range(rank, rows, after))
    assert longest <= max(1, at_once)


def files_of(folder: Path, world: int, rows: int = 10) -> list[Path]:
    files = []
    for rank in range(world):
        files.append(folder / f"{rank}.safetensors")
        checkpoint.write_tensors(files[-1], shard_state(ShardedTable(rows, 2, rank, world)))
    return files


def test_files_that_are_not_those_of_the_table_are_refused(tmp_path: Path) -> None:
    files = files_of(tmp_path, 2)
    load_shard(ShardedTable(10, 2), None, reader(files))
    with pytest.raises(ArtifactError, match="in order of rank"):
        load_shard(ShardedTable(10, 2), None, reader(files[::-1]))
    with pytest.raises(ArtifactError, match=r"expected \(11, 0, 2\)"):
        load_shard(ShardedTable(11, 2), None, reader(files))
    with pytest.raises(ArtifactError, match="another width"):
        load_shard(ShardedTable(10, 3), None, reader(files))
    with pytest.raises(ArtifactError, match=r"rank 1 .*cannot read"):
        load_shard(ShardedTable(10, 2), None, reader(files[:1]))
    table = ShardedTable(10, 2)
    with pytest.raises(ArtifactError, match="cannot read 'sum'"):
        load_shard(table, RowWiseAdagrad([table.weight], 0.1), reader(files))
    files[1].write_bytes(files[1].read_bytes()[:40])
    with pytest.raises(ArtifactError, match=r"rank 1 .*resume from an earlier one"):
        load_shard(ShardedTable(10, 2), None, reader(files))


def test_what_cannot_be_is_refused() -> None:
    for rows, width, rank, world in [(1, 2, 0, 1), (5, 0, 0, 1), (5, 2, 2, 2), (5, 2, -1, 2)]:
        with pytest.raises(TrainingError, match="a sharded table of"):
            ShardedTable(rows, width, rank, world)
    with pytest.raises(TrainingError, match="needs a process group of 2"):
        ShardedTable(5, 2, 0, 2)(torch.tensor([2]))
    with pytest.raises(TrainingError, match="outside the sharded table of 5"):
        ShardedTable(5, 2)(torch.tensor([5]))
    with pytest.raises(TrainingError, match="must not be negative"):
        RowWiseAdagrad([nn.Parameter(torch.zeros(1, 1))], -1.0)
    dense = nn.Parameter(torch.zeros(2, 2))
    dense.grad = torch.zeros(2, 2)
    with pytest.raises(TrainingError, match="is dense"):
        RowWiseAdagrad([dense], 0.1).step()


@pytest.mark.parametrize("shape", [(0,), (4,), (2, 3), (2, 0, 3)])
def test_a_lookup_keeps_the_shape_of_its_indices(shape: tuple[int, ...]) -> None:
    table = ShardedTable(9, 4)
    index = torch.randint(0, 9, shape)
    vectors = table(index)
    assert torch.equal(vectors, table.weight[index])
    vectors.sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.coalesce().indices()[0].tolist() == sorted({*index.flatten().tolist()} - {0})


def test_a_norm_counts_a_row_of_two_lookups_once_and_stays_with_the_scale() -> None:
    table = ShardedTable(9, 2)
    (table(torch.tensor([3, 3])).sum() + 2 * table(torch.tensor([3, 4])).sum()).backward()
    assert shard_square_norm([table.weight]).item() == 2 * 4**2 + 2 * 2**2
    scale_shards([table.weight], 0.5)
    assert shard_square_norm([table.weight]).item() == 10
    assert clip_whole_gradient([], [table.weight], math.inf).item() == pytest.approx(math.sqrt(10))
    assert shard_square_norm([table.weight]).item() == 10
    scale_shards([table.weight], math.nan)
    assert clip_whole_gradient([], [table.weight], 1.0).isnan()


def test_rows_that_nobody_looked_up_are_not_written() -> None:
    table = ShardedTable(9, 2)
    optimizer = RowWiseAdagrad([table.weight], 0.1)
    before = table.weight.detach().clone()
    table(torch.tensor([0, 3, 7])).sum().backward()
    optimizer.step()
    moved = (table.weight.detach() != before).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == [3, 7]
    assert optimizer.accumulator(table.weight).nonzero()[:, 0].tolist() == [3, 7]


def test_the_optimizer_goes_through_its_state_and_through_a_checkpoint() -> None:
    table = ShardedTable(9, 2)
    optimizer = RowWiseAdagrad([table.weight], 0.1)
    table(torch.tensor([3])).sum().backward()
    optimizer.step()
    expected = optimizer.accumulator(table.weight)
    by_state, by_names = (RowWiseAdagrad([table.weight], 0.2) for _ in range(2))
    by_state.load_state_dict(optimizer.state_dict())
    assert by_state.param_groups[0]["lr"] == 0.1
    tensors = checkpoint.named({"items": optimizer.state[table.weight]})
    assert list(tensors) == ["sum.items"]
    by_names.state[table.weight] = checkpoint.by_parameter(tensors, ["items"])["items"]
    for other in (by_state, by_names):
        assert torch.equal(other.accumulator(table.weight), expected)


def test_tables_are_found_by_their_parameters_names_and_models_can_be_copied() -> None:
    model = nn.Sequential(ShardedTable(9, 2), nn.ModuleList([ShardedTable(5, 2), nn.Linear(2, 2)]))
    assert list(sharded_tables(model)) == ["0.weight", "1.0.weight"]
    assert set(sharded_tables(model)) <= set(dict(model.named_parameters()))
    assert torch.equal(copy.deepcopy(model).get_parameter("0.weight"), model.get_parameter("0.weight"))
