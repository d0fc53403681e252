"""One split of `samples`, in batches: feature indices, and which fields are missing.

Shapes: N rows of the split, B rows of a batch, F categorical fields, G numeric fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from infra.errors import TrainingError
from infra.lake import Lake
from infra.tables import Kind, column_of
from train.protocol import FieldSpec, RankingBatch
from train.ragged import Ints, Ragged
from train.sequence_data import in_own_order, require_rows, users


@dataclass(frozen=True)
class RankingData:
    """One split of `samples`, with its fields in mask order."""

    fields: tuple[FieldSpec, ...]
    categorical_NF: NDArray[np.int32]
    numeric_NG: NDArray[np.float32]
    multi: tuple[Ragged, ...]
    missing_N: Ints
    """Bit i set: field i is missing."""
    label_N: NDArray[np.float32]
    user_N: NDArray[Any] = field(default_factory=lambda: np.empty(0, object))
    """User id of each row, or a number for each; for evaluation, empty in training."""
    observed_N: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    """Whether the label was logged; if not, the row is a sampled negative. Empty in training."""
    day_N: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Day of each row's event, UTC, since 1970. Empty in training."""

    @classmethod
    def from_lake(cls, lake: Lake, version: int, fields_version: int, as_of: str, split: str) -> RankingData:
        """Read (as_of, split) of `samples`, described by `fields`, each at its version.

        A null or non-finite value becomes 0 and missing. Raises TrainingError when the split is empty or
        an index lies outside the size that `fields` states.
        """
        specs = read_fields(lake, fields_version, as_of)
        columns = ["event_id", "user", "item", "ts", "label", *training_columns(specs)[1:]]
        table = lake.read("samples", version, {"as_of": as_of, "split": split}, columns)
        require_rows(len(table), "samples", version, as_of, split)
        return cls.told(in_own_order(table, ["event_id", "item", "label"], []), specs, version)

    @classmethod
    def told(cls, table: pa.Table, specs: tuple[FieldSpec, ...], version: int) -> RankingData:
        """The samples in the order of the table, with whose they are, when, and whether their label was logged."""
        observed_N = pc.equal(table["label_source"], "observed").to_numpy()
        day_N = table["ts"].cast(pa.date32()).cast(pa.int32()).to_numpy()
        return replace(cls.rows(table, specs, version), user_N=users(table), observed_N=observed_N, day_N=day_N)

    @classmethod
    def rows(cls, table: pa.Table, specs: tuple[FieldSpec, ...], version: int) -> RankingData:
        """The samples in the order of the table, for training: without users."""
        missing_N = table["missing"].to_numpy().astype(np.int64)
        categorical: list[NDArray[np.int32]] = []
        numeric: list[NDArray[np.float32]] = []
        multi: list[Ragged] = []
        for bit, spec in enumerate(specs):
            column = table[column_of(spec.name)]
            absent_N = column.is_null().to_numpy()
            if spec.kind is Kind.NUMERIC:
                with np.errstate(over="ignore"):  # beyond float32 is infinite, hence missing
                    value_N = pc.fill_null(column, np.nan).to_numpy().astype(np.float32)
                absent_N = absent_N | ~np.isfinite(value_N)
                numeric.append(np.where(absent_N, np.float32(0), value_N))
            elif spec.kind is Kind.CATEGORICAL:
                categorical.append(pc.fill_null(column, 0).to_numpy().astype(np.int32))
                _require_known(categorical[-1], spec, version)
            else:
                multi.append(Ragged.from_arrow(column))
                _require_known(multi[-1].values, spec, version)
            missing_N = missing_N | (absent_N.astype(np.int64) << bit)
        rows = len(table)
        label_N = table["label"].to_numpy().astype(np.float32)
        if (wrong_N := ~np.isin(label_N, (0, 1))).any():
            raise TrainingError(
                f"table samples version {version}: label {label_N[wrong_N][0]} is neither 0 nor 1; run the samples "
                "stage again"
            )
        return cls(
            fields=specs,
            categorical_NF=np.stack(categorical, 1) if categorical else np.zeros((rows, 0), np.int32),
            numeric_NG=np.stack(numeric, 1) if numeric else np.zeros((rows, 0), np.float32),
            multi=tuple(multi),
            missing_N=missing_N,
            label_N=label_N,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What training and validation need, by name, for memory maps."""
        multi = {
            f"multi{number}.{part}": array
            for number, ragged in enumerate(self.multi)
            for part, array in (("values", ragged.values), ("offsets", ragged.offsets))
        }
        return multi | {
            "categorical": self.categorical_NF, "numeric": self.numeric_NG,
            "missing": self.missing_N, "label": self.label_N,
        }  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], fields: tuple[FieldSpec, ...]) -> RankingData:
        """The inverse of `arrays`."""
        several = sum(spec.kind is Kind.MULTI for spec in fields)
        multi = tuple(Ragged(arrays[f"multi{i}.values"], arrays[f"multi{i}.offsets"]) for i in range(several))
        return cls(fields, arrays["categorical"], arrays["numeric"], multi, arrays["missing"], arrays["label"])

    def values(self, name: str, names: Mapping[int, str]) -> list[Any]:
        """A field's value of each row: a number, a text (`names` by index), several, or None where it is missing."""
        bit = next(i for i, spec in enumerate(self.fields) if spec.name == name)
        kind = self.fields[bit].kind
        place = [spec.name for spec in self.fields if spec.kind is kind].index(name)
        if kind is Kind.NUMERIC:
            found = self.numeric_NG[:, place].tolist()
        elif kind is Kind.CATEGORICAL:
            found = [names.get(index, str(index)) for index in self.categorical_NF[:, place].tolist()]
        else:
            rows, texts = self.multi[place], [names.get(i, str(i)) for i in self.multi[place].values.tolist()]
            found = [texts[a:b] for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
        missing = (self.missing_N >> bit & 1).astype(bool).tolist()
        return [None if gone else value for value, gone in zip(found, missing, strict=True)]

    def __len__(self) -> int:
        return len(self.label_N)

    def sizes(self, rows_B: Ints) -> Ints:
        """What each row costs: all the same."""
        return np.ones(len(rows_B), np.int64)

    def batch(self, rows_B: Ints) -> RankingBatch:
        """The rows; multi-valued fields are padded to the longest of the batch."""
        bits_N = np.arange(len(self.fields), dtype=np.int64)
        return RankingBatch(
            categorical_BF=torch.from_numpy(self.categorical_NF[rows_B].astype(np.int64)),
            numeric_BG=torch.from_numpy(self.numeric_NG[rows_B]),
            multi=tuple(torch.from_numpy(m.left_padded(rows_B)) for m in self.multi),
            missing_BN=torch.from_numpy((self.missing_N[rows_B, None] >> bits_N & 1).astype(np.bool_)),
            label_B=torch.from_numpy(self.label_N[rows_B]),
        )


def read_fields(lake: Lake, version: int, as_of: str) -> tuple[FieldSpec, ...]:
    """The field specs of a date, in mask order; TrainingError when there are none."""
    rows = lake.read("fields", version, {"as_of": as_of}).sort_by("position").to_pylist()
    if not rows:
        raise TrainingError(f"table fields version {version} has no fields as of {as_of}: run the samples stage")
    return tuple(FieldSpec(r["name"], Kind(r["kind"]), r["size"], r["mean"], r["std"], r["missing_rate"]) for r in rows)


def training_columns(specs: tuple[FieldSpec, ...]) -> list[str]:
    """The columns of `samples` that training reads."""
    return ["label", "label_source", "missing", *(column_of(spec.name) for spec in specs)]


def _require_known(values: NDArray[np.int32], spec: FieldSpec, version: int) -> None:
    largest = int(values.max(initial=0))
    if largest >= spec.size:
        raise TrainingError(
            f"table samples version {version}: field {spec.name} has index {largest}, but fields says size "
            f"{spec.size}; the two versions do not belong together"
        )
