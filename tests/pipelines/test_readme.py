"""The README's example contract works as it stands, on a log written from its description alone."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import yaml
from pyspark.sql import SparkSession

from pipelines.context import Context
from pipelines.data_stages import run_data
from pipelines.progress import Progress
from pipelines.recipe import open_recipe
from tests.pipelines.commands import ROOT, SPARK

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")


def write_log(data: Path) -> None:
    """40 visitors, 5 products, three days; one malformed row, one duplicate, one row without a price."""
    start = 1772323200  # 2026-03-01T00:00:00Z
    for number, day in enumerate(DAYS):
        folder = data / "clicks" / day
        folder.mkdir(parents=True)
        rows = [
            {
                "visitor": f"v{v}",
                "sku": f"s{(v + n + number) % 5}",
                "t": start + number * 86400 + v * 60 + n,
                "action": "buy" if (v + n) % 2 else "view",
                "device": "phone",
                "price": 2.5 * n,
            }
            for v in range(40)
            for n in range(3)
        ]
        del rows[0]["price"]
        lines = [json.dumps(r) for r in rows] + [json.dumps(rows[1])]
        lines += ["{not json"] if number == 0 else []
        with gzip.open(folder / "part-0.json.gz", "wt") as out:
            out.write("\n".join(lines) + "\n")
    products = ["sku,brand_name,tags", *(f"s{i},brand{i % 2},a|b" for i in range(5))]
    (data / "products.csv").write_text("\n".join(products) + "\n")


def test_the_example_contract(spark: SparkSession, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    contract, recipe = (yaml.safe_load(b) for b in blocks)
    (tmp_path / recipe["contract"]).write_text(yaml.safe_dump(contract))
    recipe |= {"data": str(tmp_path / "logs"), "workspace": str(tmp_path / "workspace")}
    recipe["spark"] = SPARK
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_log(tmp_path / "logs")
    with Context(*open_recipe(tmp_path / "recipe.yaml"), Progress(1), last=DAYS[-1]) as ctx:
        data = run_data(ctx)
    accounts = [s.report for s in ctx.steps if s.unit == "events"]
    assert [a["rows"] for a in accounts] == [122, 121, 121]
    assert [a["duplicates"] for a in accounts] == [1, 1, 1]
    assert accounts[0]["reasons"] == {"malformed": 1}
    lake, tables = ctx.lake, data.versions
    samples = lake.read("samples", tables["samples"]).to_pylist()
    assert len(samples) == 360
    fields = {f["name"]: f for f in lake.read("fields", tables["fields"]).to_pylist()}
    assert list(fields) == ["user", "item", "device", "price", "brand", "tags", "hour"]
    assert sum(bool(s["missing"] & (1 << fields["price"]["position"])) for s in samples) == 3
    assert {len(s["f_tags"]) for s in samples} == {2}
