"""What the tests of sharded tables run on real ranks: processes, gloo on the loopback, a file to meet at.

Shapes: B batch, D width, R vectors per user, V rows, H history.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from infra.errors import TrainingError
from train.checkpoint import read_tensors, write_tensors
from train.rowwise_adagrad import RowWiseAdagrad, clip_whole_gradient
from train.sharded import ShardedTable, load_shard, reader, shard_state, sharded_tables
from train.sharded_ranking import sharded_target_ranks

ROWS, WIDTH, SEED = 57, 5, 11
LEARNING_RATE, EPS, CLIP = 0.3, 1e-6, 0.05
SIZES = ((6, 4), (5, 0), (0, 7), (3, 3), (8, 1), (2, 6))
"""Of each step: the examples of two ranks."""

Work = Callable[..., dict[str, Tensor]]


def on_ranks(world: int, folder: Path, work: Work, *arguments: Any) -> list[dict[str, Tensor]]:
    """What `work(rank, world, folder, *arguments)` gives on each rank of a process group."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_rank, args=(world, folder, work, arguments), nprocs=world)
    return [read_tensors(folder / f"answer-{rank}.safetensors") for rank in range(world)]


def _rank(rank: int, world: int, folder: Path, work: Work, arguments: tuple[Any, ...]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=world)
    write_tensors(folder / f"answer-{rank}.safetensors", work(rank, world, folder, *arguments))
    dist.destroy_process_group()


class Towers(nn.Module):
    """A loss with two lookups of one table and a dense layer: (⟨W e[asked], e[answer]⟩ − wanted)², summed."""

    def __init__(self, table: ShardedTable | nn.Embedding) -> None:
        super().__init__()
        self.table = table
        torch.manual_seed(3)
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, asked_B: Tensor, answer_B: Tensor, wanted_B: Tensor) -> Tensor:
        """The sum, so that shares of a batch add up."""
        score_B = (self.dense(self.table(asked_B)) * self.table(answer_B)).sum(dim=1)
        return (score_B - wanted_B).square().sum()


def shares(step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Two ranks' examples of a step: the same few rows over and over, padding among them."""
    generator = torch.Generator().manual_seed(step)
    pool = torch.randint(0, ROWS, (6,), generator=generator)
    pool[0] = 0

    def share(size: int) -> tuple[Tensor, Tensor, Tensor]:
        asked_B, answer_B = pool[torch.randint(0, 6, (2, size), generator=generator)]
        return asked_B, answer_B, torch.randn(size, generator=generator)

    return [share(size) for size in SIZES[step]]


def train(
    rank: int,
    world: int,
    folder: Path,
    steps: range,
    begin: tuple[Path, int] | None = None,
    save_after: int | None = None,
) -> dict[str, Tensor]:
    """Train as the loop does, from scratch or from another number of ranks' files; the end's shard and dense layer."""
    model = Towers(ShardedTable(ROWS, WIDTH, rank, world, std=0.5, seed=SEED))
    tables = sharded_tables(model)
    names = list(tables)
    shards = [table.weight for table in tables.values()]
    dense = [p for name, p in model.named_parameters() if name not in tables]
    sparse_optimizer, optimizer = RowWiseAdagrad(shards, LEARNING_RATE, EPS), torch.optim.SGD(dense, LEARNING_RATE)
    if begin is not None:
        load(model, sparse_optimizer, *begin)
    wrapped: nn.Module = model
    if world > 1:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    norms = []
    for step in steps:
        data = shares(step)
        mine = data[rank] if world > 1 else tuple(torch.cat(parts) for parts in zip(*data, strict=True))
        sparse_optimizer.zero_grad(set_to_none=True)
        optimizer.zero_grad(set_to_none=True)
        (wrapped(*mine) * (world / sum(SIZES[step]))).backward()
        norms.append(clip_whole_gradient(dense, shards, CLIP))
        assert all(p.grad is not None and p.grad.layout == torch.sparse_coo for p in shards)
        sparse_optimizer.step()
        optimizer.step()
        if step == save_after:
            save(model, sparse_optimizer, folder, rank)
    assert isinstance(model.table, ShardedTable)
    return {**shard_state(model.table, sparse_optimizer), **_dense(model), "norms": torch.stack(norms)}


def save(model: Towers, optimizer: RowWiseAdagrad, folder: Path, rank: int) -> None:
    """A rank's file: its shard, and the dense layer beside it."""
    assert isinstance(model.table, ShardedTable)
    shard = {f"table.{name}": value for name, value in shard_state(model.table, optimizer).items()}
    write_tensors(folder / f"shard-{rank}.safetensors", {**shard, **_dense(model)})


def load(model: Towers, optimizer: RowWiseAdagrad, folder: Path, world: int) -> None:
    """Go on from what `world` ranks saved."""
    assert isinstance(model.table, ShardedTable)
    files = [folder / f"shard-{rank}.safetensors" for rank in range(world)]
    load_shard(model.table, optimizer, reader(files, "table."))
    model.load_state_dict({k: v for k, v in read_tensors(files[0]).items() if k.startswith("dense.")}, strict=False)


def _dense(model: Towers) -> dict[str, Tensor]:
    return {f"dense.{name}": value.detach() for name, value in model.dense.named_parameters()}


def refuse_and_rank(rank: int, world: int, folder: Path) -> dict[str, Tensor]:
    """Both of the following."""
    return {**refuse(rank, world), **rank_users(rank, world)}


def refuse(rank: int, world: int) -> dict[str, Tensor]:
    """One rank asks for a row that does not exist: every rank is told, and the next lookup is in step again."""
    table = ShardedTable(ROWS, WIDTH, rank, world)
    told = 0
    for wrong in (ROWS, -1):
        try:
            table(torch.tensor([[wrong if rank == 1 else 2, 3]]))
        except TrainingError as error:
            told += "[1]" in str(error)
    return {"told": torch.tensor(told), "rows": table(torch.arange(rank, ROWS))}


def problems(world: int) -> Iterator[tuple[Tensor, list[tuple[Tensor, Tensor, Tensor | None]], int | None]]:
    """Tables of small integers, so that scores are exact and often tie; users of each rank, on some none."""
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)

        def draw(low: int, high: int, *shape: int, g: torch.Generator = g) -> Tensor:
            return torch.randint(low, high, shape, generator=g)

        rows, width, interests = int(draw(2, 40)), int(draw(1, 4)), int(draw(1, 4))
        e_VD = draw(-2, 3, rows, width).float()
        if seed % 5 == 0:
            e_VD[draw(0, rows, 3)] = torch.nan
        users = []
        for _ in range(world):
            size, longest = int(draw(0, 5)), int(draw(0, 6))
            history_BH = None if seed % 3 == 0 else draw(0, rows + 2, size, longest)
            users.append((draw(-2, 3, size, interests, width).float(), draw(0, rows + 3, size), history_BH))
        yield e_VD, users, [None, 1, 2, 7][seed % 4]


def rank_users(rank: int, world: int) -> dict[str, Tensor]:
    """This rank's ranks in every problem."""
    found = {}
    for number, (e_VD, users, chunk) in enumerate(problems(world)):
        table = ShardedTable(len(e_VD), e_VD.shape[1], rank, world)
        table.load_state_dict({"weight": e_VD[rank::world]})
        u_BRD, target_B, history_BH = users[rank]
        found[f"problem {number}"] = sharded_target_ranks(u_BRD, table, target_B, history_BH, chunk)
    return found
