"""One Spark session for the length of a `with`, and nothing of it left afterwards, its JVM included."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from infra import errors
from infra.config import Settings
from infra.errors import ConfigError, EnvironmentProblem, UsageError
from infra.java import Java, find_java

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FIXED = {
    "spark.sql.session.timeZone": "UTC",  # event dates are UTC dates
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",  # Delta knows no INT96
    "spark.sql.ansi.enabled": "true",  # a bad cast is an error, never a silent null
}
"""What the tables' meaning rests on: not to be set."""

_OWN_FIELDS = {
    "spark.master": "master",
    "spark.driver.memory": "driver_memory",
    "spark.sql.shuffle.partitions": "shuffle_partitions",
}

_AT_LAUNCH = ("spark.driver.memory", "spark.driver.defaultJavaOptions", "spark.driver.extraJavaOptions")
"""What only the launch of a JVM can give it; spark-submit has launched its own before we run."""

_LOG4J = "log4j2.properties"

_QUIET = """\
rootLogger.level = error
logger.gateway.name = org.apache.spark.api.python.PythonGatewayServer
logger.gateway.level = error
rootLogger.appenderRef.stderr.ref = stderr
appender.stderr.type = Console
appender.stderr.name = stderr
appender.stderr.target = SYSTEM_ERR
appender.stderr.layout.type = PatternLayout
appender.stderr.layout.pattern = %d{yyyy-MM-dd HH:mm:ss} %p %c{1}: %m%n%ex
"""
"""Spark's own lines: errors only, to stderr. `spark.log.level` in `conf` asks for more."""

_EXIT_SECONDS = 30

_SOCKET_FOLDER = 60
"""Bytes of a folder in which a Unix socket can lie: its path has 104 at most, of which Spark's name takes 42."""


class SparkSettings(Settings):
    """Where Spark runs and with how much."""

    master: str = Field("local[2,4]", min_length=1)
    """Spark master URL; local[2,4] is two threads and up to four attempts at a task (plain local[2] never retries)."""
    driver_memory: str = Field("1g", pattern=r"^[1-9][0-9]*[kmgt]$")
    """Heap of the driver's JVM, as 512m or 4g; with a local master that is where everything runs."""
    shuffle_partitions: int = Field(4, ge=1)
    """Partitions after a shuffle, before adaptive execution joins the small ones: about two per core."""
    conf: dict[str, str] = Field(default_factory=dict)
    """Any further Spark property, e.g. spark.executor.memory; wins over our defaults."""

    @field_validator("conf")
    @classmethod
    def _not_ours(cls, conf: dict[str, str]) -> dict[str, str]:
        for key in conf:
            if not key.startswith("spark."):
                raise ValueError(f"{key!r} is no Spark property: they start with 'spark.'")
            if key in _OWN_FIELDS:
                raise ValueError(f"{key} has a setting of its own: use {_OWN_FIELDS[key]}")
            if key in FIXED:
                raise ValueError(f"{key} is always {FIXED[key]}, which the tables rely on: remove it")
        return conf


@contextmanager
def session(settings: SparkSettings, app_name: str) -> Iterator[SparkSession]:
    """A Spark session; on exit it is stopped and the JVM started for it has ended.

    In a script that spark-submit runs, the JVM is spark-submit's: it is left alone, and what spark-submit
    was told (its options, spark-defaults.conf) wins over `settings`, except FIXED. The driver's memory and
    the master are then always spark-submit's.

    Inside an open session of the same settings that session is used, and left open. One after the other,
    as many as wanted. Objects that hold on to a JVM (a decorated udf, a Column) die with their session:
    make them inside the job, not at module level. `collect` and `toPandas` give local times, as always
    with PySpark; Arrow batches are UTC.

    A typed error that a task raised leaves as itself, not as Spark's account of it.

    Raises EnvironmentProblem when there is no Java or Spark does not start, UsageError when this process
    has an open session of other settings, ConfigError when spark-submit was told another value for a FIXED
    property.
    """
    from pyspark import SparkContext

    told = _told() if submitted() else None
    if SparkContext._active_spark_context is not None:
        yield _open_session(_left_to_say(_demanded(settings), told))
        return
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="logs2rec-spark-")))
        stack.enter_context(_sigint())
        if told is not None:
            wanted = submitted_properties(settings, app_name, scratch, told)
            where = f"for spark-submit with master {told.get('spark.master', settings.master)}"
        else:
            java = find_java()
            stack.enter_context(_environment(settings, java))
            (scratch / _LOG4J).write_text(_QUIET, encoding="utf-8")
            wanted = properties(settings, app_name, scratch)
            where = f"on Java {java.version} ({java.home}) with master {settings.master}"
        try:
            spark = _start(wanted, where)
            with _typed():
                yield spark
        finally:
            _stop()


@contextmanager
def _typed() -> Iterator[None]:
    """Turn Spark's account of a task that failed for a reason of ours back into the error that the task raised."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (Py4JError, PySparkException) as error:
        for name, words in re.findall(r"^infra\.errors\.(\w+): (.+)$", str(error), re.MULTILINE):
            kind = getattr(errors, name, None)
            if isinstance(kind, type) and issubclass(kind, errors.Logs2RecError):
                raise kind(words) from error
        raise


def submitted() -> bool:
    """Whether spark-submit started this process, from a JVM of its own."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def submitted_properties(
    settings: SparkSettings, app_name: str, scratch: Path, told: Mapping[str, str]
) -> dict[str, str]:
    """The properties of a session under spark-submit, which was `told` some: those have precedence.

    Raises ConfigError naming a FIXED property that was told to be something else.
    """
    for name, value in FIXED.items():
        if (found := told.get(name, value)) != value:
            raise ConfigError(
                f"spark-submit was told {name}={found}, but the tables rely on {value}: "
                f"leave it out, or say --conf {name}={value} where spark-defaults.conf sets it"
            )
    where = settings.model_copy(update={"master": told.get("spark.master", settings.master)})
    return _left_to_say(properties(where, app_name, scratch), told)


def _left_to_say(wanted: Mapping[str, str], told: Mapping[str, str] | None) -> dict[str, str]:
    """Without what spark-submit was told, and what only the launch of its JVM could have heeded."""
    if told is None:
        return dict(wanted)
    return {name: value for name, value in wanted.items() if name not in told and name not in _AT_LAUNCH}


def _told() -> dict[str, str]:
    """What spark-submit was told: its options, and spark-defaults.conf."""
    from pyspark import SparkConf, SparkContext

    SparkContext.getSystemProperty("java.version")  # connects to the JVM: without one a SparkConf is empty
    told = dict(SparkConf().getAll())
    if told.get("spark.app.name") == Path(sys.argv[0]).name:  # spark-submit's own answer, where --name gave none
        del told["spark.app.name"]
    return told


def properties(settings: SparkSettings, app_name: str, scratch: Path) -> dict[str, str]:
    """Every Spark property of a session; `scratch` receives what would else land in the working directory."""
    defaults = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.defaultJavaOptions": f'-Dlog4j2.configurationFile="{scratch / _LOG4J}"',
        "spark.sql.adaptive.enabled": "true",
        # After an adaptive join rows stay in the partition their key hashes to, not in that of whichever
        # task happened to read them: what a job sees per partition then depends on the data alone.
        "spark.sql.adaptive.localShuffleReader.enabled": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.catalogImplementation": "in-memory",
        "spark.sql.warehouse.dir": (scratch / "warehouse").as_uri(),
    }
    if is_local(settings.master):
        defaults |= {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
        if len(os.fsencode(scratch)) <= _SOCKET_FOLDER:  # over TCP every job with Python workers waits 40 ms longer
            defaults |= {
                "spark.python.unix.domain.socket.enabled": "true",
                "spark.python.unix.domain.socket.dir": str(scratch),
            }
    return defaults | _demanded(settings) | {"spark.app.name": app_name}


def _demanded(settings: SparkSettings) -> dict[str, str]:
    """What a session must have, however it was opened."""
    fields = {name: str(getattr(settings, field)) for name, field in _OWN_FIELDS.items()}
    return settings.conf | fields | FIXED


def is_local(master: str) -> bool:
    """Whether every process of this master runs on this machine.

    >>> is_local("local[2,4]"), is_local("local-cluster[2,1,1024]"), is_local("k8s://https://host:443")
    (True, True, False)
    """
    return master.startswith("local")


@contextmanager
def _environment(settings: SparkSettings, java: Java) -> Iterator[None]:
    """The variables that Spark's launch scripts and PySpark read; put back afterwards."""
    wanted = {"JAVA_HOME": str(java.home)}
    if is_local(settings.master):
        # The workers' Python has to be the driver's, or our packages are not there.
        wanted |= {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
        wanted |= {"SPARK_LOCAL_IP": "127.0.0.1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _sigint() -> Iterator[None]:
    """Put back the handler of Ctrl-C: PySpark's speaks to a context that is gone by then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _open_session(demanded: Mapping[str, str]) -> SparkSession:
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    for name, value in demanded.items():
        if (found := spark.conf.get(name, None)) != value:
            raise UsageError(f"this process has an open Spark session with {name}={found}, not {value}: close it first")
    return spark


def _start(wanted: Mapping[str, str], where: str) -> SparkSession:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    try:
        return SparkSession.builder.config(map=dict(wanted)).getOrCreate()
    except (Py4JError, PySparkException, OSError) as error:
        raise EnvironmentProblem(
            f"Spark did not start {where}: "
            f"{' '.join(str(error).split())[:300]} - see Spark's own lines above, and run `logs2rec doctor`"
        ) from error


def _stop() -> None:
    """Stop the session, then its JVM: a stopped session alone leaves hundreds of megabytes behind."""
    from py4j.protocol import Py4JError
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    gateway: Any = SparkContext._gateway
    context = SparkContext._active_spark_context
    try:
        if SparkSession._instantiatedSession is not None:
            SparkSession._instantiatedSession.stop()
        elif context is not None:
            context.stop()
    except (Py4JError, OSError):
        pass  # the JVM is gone already (out of memory, killed): what is left is to forget it
    finally:
        SparkSession._instantiatedSession = SparkSession._activeSession = None
        SparkContext._active_spark_context = None
        process: subprocess.Popen[bytes] | None = getattr(gateway, "proc", None)
        if process is not None:  # None: spark-submit started us, the JVM is not ours to end
            SparkContext._gateway = SparkContext._jvm = None
            gateway.shutdown()
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The JVM exits when its standard input ends, and clears its own temporary files on the way."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
