"""What `logs2rec rekey` has to know of."""

from __future__ import annotations

from infra import tables
from infra.tables import Table
from pipelines import rekey


def test_no_table_with_user_ids_is_forgotten() -> None:
    declared = [t for t in vars(tables).values() if isinstance(t, Table)]
    with_users = {t.name for t in declared if "user" in t.schema.names}
    assert {"histories", "recommendations"} <= with_users <= {*rekey._TABLE_OF.values(), *rekey._AGAIN.values()}
