"""Tables too large for one process, of items or of feature values: rows shared out over the ranks, only touched rows
moved and trained.

Rank r of W owns the rows i with i mod W = r, as local row i // W of its shard. A lookup sends each
distinct id to its owner and gets the row back; backward sends the rows' gradients the same way:

    v_n = e[i_n],    g[i] = 1/W · Σ_ranks Σ_{n: i_n = i} ∂loss_rank/∂v_n

The loop scales a rank's loss so that DDP's MEAN over ranks is the global batch's gradient. Here gradients
arrive as a SUM, hence 1/W. The owner keeps them as a sparse gradient of its shard.

On paper, V = 100 million items, D = 128, float32: the table has 51.2 GB, the accumulators of RowWiseAdagrad 0.4 GB. A
rank holds 6.45 GB of 8, 806 MB of 64. From the first best validation on its host keeps as much again, the best rows;
each rank has the negatives' proposal, 8V bytes (0.8 GB); the driver, which writes the artifact, has the whole table
once. A rank that looks up U distinct ids in a step sends at most 8U bytes of ids and 4DU of gradients, and receives
4DU of rows: 1032 U; it serves others as much. With U = 34,000 (512 sequences of 50 and 8,192 negatives) that is 35
MB, of which 7/8 cross between 8 ranks, 63/64 between 64. DDP would reduce a dense gradient of 51.2 GB.

Why not what exists: FSDP2 brings the whole table together to compute. torchrec runs with torch 2.13 on the
CPU (1.8, fbgemm-gpu-cpu 1.8; not 1.9), but its row-wise tables are updated inside backward, before the
gradient of all ranks can be clipped or refused.

Shapes: V rows of the table, S = ⌈(V − r) / W⌉ rows of a shard, D width, * any shape of indices, N indices,
U distinct ones, M rows asked of this rank, W ranks (`world`), r this rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from infra.errors import ArtifactError, TrainingError
from infra.tables import FIRST_INDEX, PADDING
from train.randomness import seed_of
from train.rowwise_adagrad import ACCUMULATOR, RowWiseAdagrad

#: (old rank, tensor's name, start, stop) -> rows.
ReadRows = Callable[[int, str, int, int], Tensor]

#: Rows that one generator draws. Part of what a seed means: another size gives another table.
_BLOCK = 8192

_ROWS_PER_READ = 2**16


class ShardedTable(nn.Module):
    """e_VD as this rank's shard `weight` (S, D). All ranks look up together, each its own indices.

    Rows start from N(0, std²), the same for any number of ranks; row 0, the padding, is zero and never moves.
    """

    def __init__(self, rows: int, width: int, rank: int = 0, world: int = 1, std: float = 0.02, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= rank < world or rows < FIRST_INDEX or width < 1:
            raise TrainingError(
                f"a sharded table of {rows} rows x {width} as rank {rank} of {world}: it needs at least {FIRST_INDEX} "
                "rows, a width of at least 1, and a rank below the number of ranks"
            )
        self.rows, self.width, self.rank, self.world = rows, width, rank, world
        self.weight = nn.Parameter(_initial_shard(rows, width, rank, world, std, seed))

    def forward(self, index: Tensor) -> Tensor:
        """index_* -> e[index]_*D. A collective: every rank calls it, with no indices (0,) if it has none.

        In training every rank's loss must depend on the answer, if only by a factor 0: backward is a
        collective too. TrainingError on every rank when any rank asks for a row outside the table.
        """
        key_U, place_N, asks_W = self._by_owner(index.reshape(-1).long())
        ask, asked = self._counts(index, asks_W)
        row_M = _all_to_all(key_U % self._stride, ask, asked)
        # sparse: backward keeps (rows, gradients) as they are, and makes nothing of the shard's size.
        e_MD = F.embedding(row_M, self.weight, padding_idx=PADDING if self.rank == 0 else None, sparse=True)
        e_UD = _Exchange.apply(e_MD, asked, ask) if self.world > 1 else e_MD
        return F.embedding(place_N, e_UD).view(*index.shape, self.width)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.rows}, {self.width}, rank={self.rank}, world={self.world}"

    @property
    def _stride(self) -> int:
        """Rows of the largest shard."""
        return -(-self.rows // self.world)

    def _by_owner(self, index_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(key_U, place_N, asks_W): distinct indices sorted by owner, each index's place, the number per owner."""
        key_N = index_N % self.world * self._stride + index_N // self.world
        key_U, place_N = torch.unique(key_N, return_inverse=True)
        bounds = torch.arange(self.world + 1, device=key_U.device) * self._stride
        return key_U, place_N, torch.searchsorted(key_U, bounds).diff()

    def _counts(self, index: Tensor, asks_W: Tensor) -> tuple[list[int], list[int]]:
        """(rows asked of each rank, rows each rank asks here), waiting once for the device: splits are host numbers."""
        outside = ((index < 0) | (index >= self.rows)).any()
        sent_W2 = torch.stack([asks_W, outside.long().expand(self.world)], dim=1)
        ones = [1] * self.world
        ask, asked, failed = torch.cat([asks_W[:, None], _all_to_all(sent_W2, ones, ones)], dim=1).T.tolist()
        if any(failed):
            ranks = [rank for rank, flag in enumerate(failed) if flag]
            raise TrainingError(
                f"ranks {ranks} looked up a row outside the sharded table of {self.rows}; build the table with the "
                "vocabulary that the batches were made with"
            )
        return ask, asked


def sharded_tables(model: nn.Module) -> dict[str, ShardedTable]:
    """The model's tables by the name of their parameter; these names must be left out of DDP.

    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(wrapped, list(sharded_tables(wrapped)))
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, ShardedTable)]
    return {f"{name}.weight" if name else "weight": module for name, module in found}


class _Exchange(torch.autograd.Function):
    """Rows back to those who asked; gradients to the owners, divided by the number of ranks."""

    @staticmethod
    def forward(ctx: Any, e_MD: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """e_UD, sorted as asked for."""
        ctx.send, ctx.receive = send, receive
        return _all_to_all(e_MD, send, receive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_UD: Tensor) -> tuple[Tensor, None, None]:
        """g_MD."""
        return _all_to_all(g_UD / len(ctx.send), ctx.receive, ctx.send), None, None


def _all_to_all(x: Tensor, send: list[int], receive: list[int]) -> Tensor:
    """Rows of x, `send` of them to each rank in turn, for `receive` rows of each."""
    world = len(send)
    if world == 1:
        return x
    require_group(world)
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=_exchange_group(dist.group.WORLD))
    return out


def require_group(world: int) -> None:
    """TrainingError unless the process group has this many ranks."""
    if not dist.is_initialized() or dist.get_world_size() != world:
        raise TrainingError(f"a table sharded over {world} ranks needs a process group of {world}; start one first")


@cache
def _exchange_group(default: Any) -> Any:
    """A process group for exchanges alone: in backward they may meet DDP's reductions in another order on each rank.

    It gives up a silent rank as soon as the default group does, which a new group does not by itself.
    """
    device = torch.device("cuda" if dist.get_backend() == dist.Backend.NCCL else "cpu")
    return dist.new_group(timeout=default._get_backend(device).options._timeout)


def _initial_shard(rows: int, width: int, rank: int, world: int, std: float, seed: int) -> Tensor:
    """e_SD: each block of the table drawn by a generator of its own, of which the rank keeps its rows.

    Every rank draws every block, about 100 s of one core for 100 million x 128, once in a run.
    """
    e_SD = torch.empty(len(range(rank, rows, world)), width)
    drawn_D = torch.empty(_BLOCK, width)
    generator = torch.Generator()
    for block in range(-(-rows // _BLOCK)):
        first = block * _BLOCK
        generator.manual_seed(seed_of(seed, block))
        drawn_D.normal_(0, std, generator=generator)
        mine_D = drawn_D[(rank - first) % world : rows - first : world]
        row = (first + (rank - first) % world) // world
        e_SD[row : row + len(mine_D)] = mine_D
    if rank == 0:
        e_SD[PADDING] = 0
    return e_SD


# Checkpoints.


def shard_state(table: ShardedTable, optimizer: RowWiseAdagrad | None = None) -> dict[str, Tensor]:
    """What this rank writes: `weight` (S, D), `sum` (S,) of the optimizer, `layout` (rows, rank, world).

    The first two share memory with the table and the optimizer.
    """
    state = {"weight": table.weight.detach(), "layout": torch.tensor([table.rows, table.rank, table.world])}
    return state if optimizer is None else {**state, ACCUMULATOR: optimizer.accumulator(table.weight)}


def load_shard(table: ShardedTable, optimizer: RowWiseAdagrad | None, read: ReadRows) -> None:
    """Fill the shard (and accumulators) from what `shard_state` gave on any number of ranks; see `load_rows`."""
    targets = shard_state(table, optimizer)
    targets.pop("layout")
    load_rows(targets, read, table.rows, table.rank, table.world)


@torch.no_grad()
def load_rows(targets: Mapping[str, Tensor], read: ReadRows, rows: int, rank: int = 0, world: int = 1) -> None:
    """Fill the `targets` of one rank of `world`, of all `rows` if it is the only one, from the files of any number.

    `read(rank, name, start, stop)` gives rows of a tensor of an old rank, as `reader` does. Rows come in
    blocks: beside the targets one block is held. ArtifactError when the files are not those of such a table.
    """
    old_world = int(read(0, "layout", 0, 3)[2])
    for old in range(old_world):
        if (layout := read(old, "layout", 0, 3).tolist()) != [rows, old, old_world]:
            raise ArtifactError(
                f"file {old} of a sharded table says (rows, rank, ranks) = {tuple(layout)}, expected "
                f"{(rows, old, old_world)}; give the files of one checkpoint of this table, in order of rank"
            )
    for old in range(old_world):
        for name, target in targets.items():
            _fill(target, (rows, rank, world), old, old_world, partial(read, old, name))


def _fill(
    target: Tensor, layout: tuple[int, int, int], old: int, old_world: int, read: Callable[[int, int], Tensor]
) -> None:
    """Copy the rows that rank `old` of `old_world` had and this rank of `layout` has.

    They are every lcm-th row i from the first with i mod old_world = old and i mod world = rank: equally
    spaced, by `stride` in the old shard and by `step` in the new one.
    """
    all_rows, rank, world = layout
    common = math.lcm(old_world, world)
    first = next((i for i in range(old, common, old_world) if i % world == rank), all_rows)
    count = len(range(first, all_rows, common))
    stride, step = common // old_world, common // world
    per_read = max(1, _ROWS_PER_READ // stride)
    for start in range(0, count, per_read):
        number = min(per_read, count - start)
        begin, length = first // old_world + start * stride, (number - 1) * stride + 1
        rows = read(begin, begin + length)
        if rows.shape != (length, *target.shape[1:]):
            raise ArtifactError(
                f"file {old} of a sharded table: read shape {tuple(rows.shape)} at row {begin} for "
                f"{(length, *target.shape[1:])}; the file is of a table of another width, or cut short"
            )
        place = first // world + start * step
        target[place : place + (number - 1) * step + 1 : step] = rows[::stride].to(target.device)


def reader(files: Sequence[Path], prefix: str = "") -> ReadRows:
    """Rows straight from safetensors files, one per old rank in order; `prefix` precedes the tensors' names."""

    def read(rank: int, name: str, start: int, stop: int) -> Tensor:
        try:
            with safe_open(files[rank], "pt") as opened:
                return opened.get_slice(prefix + name)[start:stop]
        except (SafetensorError, OSError, IndexError) as error:
            raise ArtifactError(
                f"rank {rank} of a sharded table: cannot read {prefix + name!r} ({error}); the checkpoint is "
                "incomplete, resume from an earlier one"
            ) from None

    return read
