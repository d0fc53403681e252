"""AUC, UAUC and log loss of a ranking model whose logits can be worked out by hand."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from evaluate.impressions import evaluate_impressions, within
from evaluate.settings import ImpressionSettings, MissingnessSettings
from infra.commit import commit, write_file
from infra.errors import UsageError
from infra.lake import Lake
from infra.tables import FIELDS, Kind, samples
from train import artifact
from train.configs import AsymDiffRecConfig, DNNConfig, PopularityConfig
from train.protocol import FieldSpec, RankingBatch

AS_OF = "2024-03-02"
TS = datetime(2024, 3, 2, tzinfo=UTC)
KINDS = [("colour", Kind.CATEGORICAL), ("price", Kind.NUMERIC), ("tags", Kind.MULTI)]
SPECS = (
    FieldSpec("colour", Kind.CATEGORICAL, 4),
    FieldSpec("price", Kind.NUMERIC, 0, 1.0, 2.0),
    FieldSpec("tags", Kind.MULTI, 4),
)

Row = tuple[str, int | None, float | None, list[int] | None, int]
"""User, colour, price, tags, label."""


def impressions(
    root: Path, rows: list[Row], sizes: tuple[int, int] = (4, 4), sampled: tuple[int, ...] = ()
) -> tuple[Lake, int, int]:
    """`samples` (test) and `fields`; what is None is missing. Returns the lake and both versions.

    `sampled`: positions of the rows whose label nobody gave.
    """
    lake, table = Lake(root), samples(KINDS)
    listed = [
        {
            "event_id": f"e{i:03d}", "user": user, "item": 2, "ts": TS, "label": label,
            "label_source": "sampled" if i in sampled else "observed",
            "missing": sum((v is None) << bit for bit, v in enumerate(values)),
            **dict(zip(("f_colour", "f_price", "f_tags"), values, strict=True)),
        }
        for i, (user, *values, label) in enumerate(rows)
    ]  # fmt: skip
    specs = [
        {"position": i, "name": name, "kind": str(kind), "size": size, "mean": 1.0, "std": 2.0, "missing_rate": 0.0}
        for i, ((name, kind), size) in enumerate(zip(KINDS, (sizes[0], 0, sizes[1]), strict=True))
    ]
    versions = []
    for target, partition, data in (
        (table, {"as_of": AS_OF, "split": "test"}, listed),
        (FIELDS, {"as_of": AS_OF}, specs),
    ):
        data = pa.Table.from_pylist(data, schema=target.file_schema)
        file = write_file(lake.path(target.name), target, partition, [data])
        versions.append(commit(lake, target, [file], replace={"as_of": [AS_OF]}, metadata={}))
    return lake, versions[0], versions[1]


def save(path: Path, config: Any, model: Any, fields: tuple[FieldSpec, ...] = SPECS) -> Path:
    artifact.save(path, model, config, lineage={}, vocabulary_hash="", metrics={}, fields=fields)
    return path


ADDING = DNNConfig(embedding_width=1, hidden=(1,), dropout=0.0, missing="zero")


def adding(path: Path, colours: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)) -> Path:
    """logit = colour + (price - 1) / 2 + mean of tags - 2, never below -2; what is missing adds 0.

    colour: unknown 0.5, 1 and 2; tags: unknown 0, 1 and 3.
    """
    model: Any = artifact.build(ADDING, None, SPECS)
    with torch.no_grad():
        model.fields.table.weight[:] = torch.tensor([*colours, 0.0, 0.0, 1.0, 3.0])[:, None]
        model.fields.slope_GW.fill_(1)
        model.fields.bias_GW.fill_(0)
        model.mlp[0].weight.fill_(1)
        model.mlp[0].bias.fill_(0)
        model.out.weight.fill_(1)
        model.out.bias.fill_(-2)
    return save(path, ADDING, model)


ROWS: list[Row] = [
    ("ann", 3, 1.0, [2], 1),  # 2 + 0 + 1 - 2 = 1
    ("bob", None, 1.0, [3], 1),  # 0 + 0 + 3 - 2 = 1
    ("ann", 2, 1.0, [], 0),  # 1 + 0 + 0 - 2 = -1
    ("cat", 2, 1.0, [2], 0),  # 1 + 0 + 1 - 2 = 0
    ("ann", 2, 3.0, [2, 3], 0),  # 1 + 1 + 2 - 2 = 2
    ("bob", 2, None, [3], 1),  # 1 + 0 + 3 - 2 = 2
    ("cat", 3, 3.0, [2], 1),  # 2 + 1 + 1 - 2 = 2
]
LOGITS = [1, 1, -1, 0, 2, 2, 2]
SETTINGS = ImpressionSettings(batch_size=3)


def test_slices_by_hand(tmp_path):
    """The AUC of each user among the rows of a slice; users with one class there do not count."""
    lake, version, fields = impressions(tmp_path, ROWS)
    asked = SETTINGS.model_copy(update={"slices": ("colour", "price", "tags")})
    names = {"colour": {2: "red", 3: "blue"}, "tags": {2: "a", 3: "b"}}
    found = evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, asked, names=names)
    assert {name: (users.tolist(), values.tolist()) for name, (users, values) in found.slices.items()} == {
        "activity: least active quarter": (["cat"], [1.0]),
        "activity: most active quarter": (["ann"], [0.5]),
        "price: from 1 to 3": (["ann", "cat"], [0.5, 1.0]),
        "tags: a": (["ann", "cat"], [0.0, 1.0]),
    }


def test_by_hand(tmp_path):
    lake, version, fields = impressions(tmp_path, ROWS)
    found = evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, SETTINGS)
    # ann: 1 against -1 and 2, one of two; bob has positives only and is left out; cat: 2 against 0.
    assert found.users.tolist() == ["ann", "cat"]
    assert found.user_auc.tolist() == [0.5, 1.0]
    assert found.metrics["uauc"] == 0.75
    # 1 and 1 each beat -1 and 0; 2 and 2 beat -1 and 0 and tie with 2.
    assert found.metrics["auc"] == (2 + 2 + 2.5 + 2.5) / 12
    losses = [math.log1p(math.exp(-y if label else y)) for y, (*_, label) in zip(LOGITS, ROWS, strict=True)]
    assert found.metrics["log_loss"] == pytest.approx(sum(losses) / 7)
    assert (found.metrics["impressions"], found.metrics["users"]) == (7, 2)
    assert found.metrics["positive_share"] == pytest.approx(4 / 7)
    assert found.metrics["impressions_per_second"] > 0


def test_a_single_class_has_no_auc(tmp_path):
    lake, version, fields = impressions(tmp_path, [ROWS[0], ROWS[1]])
    found = evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, SETTINGS)
    assert (len(found.users), len(found.user_auc), found.metrics["users"]) == (0, 0, 0)
    assert math.isnan(found.metrics["uauc"])
    assert math.isnan(found.metrics["auc"])
    assert found.metrics["log_loss"] == pytest.approx(math.log1p(math.exp(-1)))


def test_sampled_negatives_do_not_count(tmp_path):
    lake, version, fields = impressions(tmp_path, ROWS, sampled=(4, 3))
    found = evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, SETTINGS)
    # Without ann's 2 and cat's 0: ann has 1 against -1, cat positives only.
    assert found.users.tolist() == ["ann"]
    assert (found.metrics["uauc"], found.metrics["impressions"]) == (1.0, 5)
    assert found.metrics["sampled_uauc"] == 0.75
    assert found.metrics["sampled_auc"] == (2 + 2 + 2.5 + 2.5) / 12


def test_large_logits_do_not_tie(tmp_path):
    # 18 and 28: both 1 as a float32 probability.
    path = adding(tmp_path / "m", colours=(0.0, 0.0, 20.0, 30.0))
    lake, version, fields = impressions(tmp_path, [("ann", 2, 1.0, [], 0), ("ann", 3, 1.0, [], 1)])
    assert evaluate_impressions(path, lake, version, fields, AS_OF, SETTINGS).metrics["auc"] == 1


def test_values_beyond_the_table_are_unknown(tmp_path):
    """Today's vocabularies have grown; unknown colour adds 0.5, an unknown tag 0."""
    rows: list[Row] = [("ann", 7, 1.0, [2], 1), ("ann", 2, 1.0, [8, 3], 0), ("ann", 1, 1.0, [1], 1)]
    logits = [0.5 + 1 - 2, 1 + 1.5 - 2, 0.5 + 0 - 2]
    lake, version, fields = impressions(tmp_path, rows, sizes=(8, 9))
    found = evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, SETTINGS)
    losses = [math.log1p(math.exp(-y if label else y)) for y, (*_, label) in zip(logits, rows, strict=True)]
    assert found.metrics["log_loss"] == pytest.approx(sum(losses) / 3)


def test_within(tmp_path):
    loaded = artifact.load(adding(tmp_path / "m"))
    batch = RankingBatch(
        categorical_BF=torch.tensor([[3], [4], [0], [99]]),
        numeric_BG=torch.tensor([[1.0], [2.0], [3.0], [4.0]]),
        multi=(torch.tensor([[0, 3], [4, 2], [0, 0], [1, 99]]),),
        missing_BN=torch.tensor([[False, False, True]] * 4),
        label_B=torch.tensor([1.0, 0.0, 1.0, 0.0]),
    )
    found = within(batch, loaded)
    assert found.categorical_BF.tolist() == [[3], [1], [0], [1]]
    assert [m.tolist() for m in found.multi] == [[[0, 3], [1, 2], [0, 0], [1, 1]]]
    assert torch.equal(found.numeric_BG, batch.numeric_BG)
    assert torch.equal(found.missing_BN, batch.missing_BN)
    assert torch.equal(found.label_B, batch.label_B)


@pytest.mark.parametrize("size", [1, 4, 4096])
def test_against_another_library_at_any_batch_size(tmp_path, size):
    random = torch.Generator().manual_seed(2)

    def draw(n: int) -> int:
        return int(torch.randint(n, (), generator=random))

    rows: list[Row] = []
    for _ in range(40):
        tags = [1 + draw(3) for _ in range(draw(3))]
        values = [v if draw(5) else None for v in (1 + draw(3), draw(100) / 10, tags)]
        rows.append((f"u{draw(6)}", *values, draw(2)))  # type: ignore[arg-type]
    torch.manual_seed(4)
    config = AsymDiffRecConfig(base=DNNConfig(embedding_width=3, hidden=(4,)), hidden=4)
    model: Any = artifact.build(config, None, SPECS).eval()
    path = save(tmp_path / "m", config, model)
    lake, version, fields = impressions(tmp_path, rows)
    found = evaluate_impressions(path, lake, version, fields, AS_OF, ImpressionSettings(batch_size=size))

    def batch(row: Row) -> RankingBatch:
        _, colour, price, tags, _ = row
        return RankingBatch(
            torch.tensor([[colour or 0]]), torch.tensor([[price or 0.0]]), (torch.tensor([tags or [0]]),),
            torch.tensor([[colour is None, price is None, tags is None]]), torch.zeros(1),
        )  # fmt: skip

    with torch.no_grad():
        p = [float(torch.sigmoid(model.logits(batch(row)).double())) for row in rows]
    labels = [row[-1] for row in rows]
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-6)
    assert found.metrics["log_loss"] == pytest.approx(log_loss(labels, p), abs=1e-6)
    for user, value in zip(found.users, found.user_auc, strict=True):
        mine = [i for i, row in enumerate(rows) if row[0] == user]
        assert value == pytest.approx(roc_auc_score([labels[i] for i in mine], [p[i] for i in mine]), abs=1e-6)
    both = {row[0] for row in rows if {r[-1] for r in rows if r[0] == row[0]} == {0, 1}}
    assert set(found.users) == both
    assert found.metrics["uauc"] == pytest.approx(sum(found.user_auc) / len(both))


@pytest.mark.parametrize(
    "fields",
    [
        SPECS[:2],
        (SPECS[1], SPECS[0], SPECS[2]),
        (FieldSpec("color", Kind.CATEGORICAL, 4), *SPECS[1:]),
        (FieldSpec("colour", Kind.MULTI, 4), *SPECS[1:]),
    ],
)
def test_other_fields_are_refused(tmp_path, fields):
    path = save(tmp_path / "m", ADDING, artifact.build(ADDING, None, fields), fields)
    lake, version, described = impressions(tmp_path, ROWS)
    with pytest.raises(
        UsageError, match=r"was trained on the fields .*today's samples have colour \(categorical\), price"
    ):
        evaluate_impressions(path, lake, version, described, AS_OF, SETTINGS)


def test_a_sequence_model_is_refused(tmp_path):
    lake, version, fields = impressions(tmp_path, ROWS)
    config = PopularityConfig()
    model = artifact.build(config, 4, ())
    artifact.save(tmp_path / "m", model, config, lineage={}, vocabulary_hash="", metrics={}, catalogue=4)
    with pytest.raises(UsageError, match="holds a sequence model; impressions need a ranking model"):
        evaluate_impressions(tmp_path / "m", lake, version, fields, AS_OF, SETTINGS)


class TestWithLess:
    """`adding` gives what is missing 0, so each scenario's logits are sums of what is left."""

    RATES = (0.5, 0.75)

    def found(self, tmp_path, **changes):
        lake, version, fields = impressions(tmp_path, ROWS, sampled=changes.pop("sampled", ()))
        asked = MissingnessSettings(rates=self.RATES, **changes)
        settings = ImpressionSettings(batch_size=3, missingness=asked)
        return evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, settings)

    def test_without_a_field(self, tmp_path):
        found = self.found(tmp_path)
        labels = [row[-1] for row in ROWS]
        without_tags = [0, -2, -1, -1, 0, -1, 1]
        clipped = [max(logit, -2) for logit in without_tags]
        assert found.metrics["without_tags/auc"] == pytest.approx(roc_auc_score(labels, clipped))
        p = [1 / (1 + math.exp(-logit)) for logit in clipped]
        assert found.metrics["without_tags/log_loss"] == pytest.approx(log_loss(labels, p))
        assert found.metrics["without_tags/calibration_ratio"] == pytest.approx(sum(p) / sum(labels))
        assert found.metrics["auc"] == pytest.approx(roc_auc_score(labels, LOGITS))

    def test_every_scenario_has_every_figure_and_a_value_for_each_user(self, tmp_path):
        found = self.found(tmp_path)
        names = [f"{p}_{r}" for p in ("at_random", "by_activity") for r in (50, 75)]
        assert "by_day_50/auc" not in found.metrics, "all rows are of one day"
        for name in (*names, "without_colour", "without_price", "without_tags"):
            for metric in (
                "auc",
                "uauc",
                "log_loss",
                "calibration_ratio",
                "calibration_error",
                "hr_at_5",
                "ndcg_at_10",
            ):
                assert math.isfinite(found.metrics[f"{name}/{metric}"])
            for metric in ("auc", "uauc"):
                values = found.per_user[f"{name}/{metric}"]
                assert values.shape == found.everybody.shape == (3,)
                assert np.nanmean(values) == pytest.approx(found.metrics[f"{name}/{metric}"])

    def test_the_area_is_between_the_log_as_it_is_and_the_highest_rate(self, tmp_path):
        found = self.found(tmp_path)
        for metric in ("auc", "uauc"):
            at_0, at_50, at_75 = (found.metrics[n + metric] for n in ("", "at_random_50/", "at_random_75/"))
            by_hand = (0.5 * (at_0 + at_50) / 2 + 0.25 * (at_50 + at_75) / 2) / 0.75
            assert found.metrics[f"at_random/{metric}_area"] == pytest.approx(by_hand)
            assert np.nanmean(found.per_user[f"at_random/{metric}_area"]) == pytest.approx(by_hand)

    def test_nothing_of_it_unless_asked(self, tmp_path):
        lake, version, fields = impressions(tmp_path, ROWS)
        found = evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, SETTINGS)
        assert not [name for name in found.metrics if "/" in name]

    def test_over_the_observed_rows_alone(self, tmp_path):
        """All of cat's labels are made up; activity is still that of all rows."""
        found = self.found(tmp_path, sampled=(3, 6), patterns=("at_random",))
        assert found.everybody.tolist() == ["ann", "bob"]
        assert found.metrics["impressions"] == 5
        assert found.per_user["at_random_50/uauc"].shape == (2,)
        assert math.isfinite(found.metrics["at_random_50/sampled_auc"])


def test_a_sample_without_any_field_and_a_user_of_one_class(tmp_path):
    rows: list[Row] = [("ann", None, None, None, 1), ("ann", 3, 1.0, [2], 0), ("bob", None, None, None, 1)]
    lake, version, fields = impressions(tmp_path, rows)
    found = evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, SETTINGS)
    assert found.users.tolist() == ["ann"]
    assert found.user_auc.tolist() == [0.0]
    assert found.everybody.tolist() == ["ann", "bob"]
    assert found.per_user["uauc"].tolist() == pytest.approx([0.0, math.nan], nan_ok=True)
    assert np.isnan(found.per_user["ndcg_at_5"][1]), "every order of one class is perfect"


def test_observed_rows_of_one_class_say_nothing_of_order_or_calibration(tmp_path):
    lake, version, fields = impressions(tmp_path, ROWS, sampled=(2, 3, 4))
    found = evaluate_impressions(adding(tmp_path / "m"), lake, version, fields, AS_OF, SETTINGS)
    for name in ("auc", "uauc", "hr_at_5", "ndcg_at_5", "calibration_ratio", "calibration_error"):
        assert math.isnan(found.metrics[name])
    assert math.isfinite(found.metrics["sampled_auc"])
    assert math.isfinite(found.metrics["log_loss"])
