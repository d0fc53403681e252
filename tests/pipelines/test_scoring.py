"""What becomes of a bucket's error, and of a lost worker: real Ray workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.cluster import RaySettings, cluster
from infra.errors import AuditError, EnvironmentProblem
from pipelines import scoring


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with cluster(RaySettings(cpus=2, object_store_mb=100)):
        yield


@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def carried_out(self, monkeypatch: pytest.MonkeyPatch, task: Any) -> dict[int, dict[str, Any]]:
        monkeypatch.setattr(scoring, "score_bucket", task)
        return dict(scoring._on_ray("the job", [0, 1, 2]))  # type: ignore[arg-type]

    def test_every_bucket_has_its_note(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def task(job: str, number: int) -> dict[str, Any]:
            return {"file": None, "report": {job: number}}

        found = self.carried_out(monkeypatch, task)
        assert found == {n: {"file": None, "report": {"the job": n}} for n in range(3)}

    def test_an_error_comes_as_what_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def task(job: str, number: int) -> dict[str, Any]:
            if number == 1:
                raise AuditError("recommendations: 1 lists have a gap")
            return {}

        with pytest.raises(AuditError, match=r"^recommendations: 1 lists have a gap$"):
            self.carried_out(monkeypatch, task)

    def test_a_lost_worker_is_replaced_and_then_told(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        died = tmp_path / "died"

        def dies_once(job: str, number: int) -> dict[str, Any]:
            if number == 1 and not died.exists():
                died.write_text("")
                os._exit(1)
            return {"number": number}

        assert self.carried_out(monkeypatch, dies_once)[1] == {"number": 1}

        def dies(job: str, number: int) -> dict[str, Any]:
            os._exit(1)

        with pytest.raises(
            EnvironmentProblem, match=r"a worker was lost while it made a bucket .*buckets that are done"
        ):
            self.carried_out(monkeypatch, dies)
