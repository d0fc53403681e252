"""A Ray cluster of two nodes on this machine, one of which is killed while a model trains, and later replaced.

`python -m tests.faults.nodes FOLDER KIND` prints one line of JSON. KIND: `kill` (the raylet and all its workers, by
SIGKILL) or `drain` (a preemption notice, after which the node goes). A process of its own, because Ray has to be
told before it is imported to listen on the loopback interface only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from infra.cluster import LOOPBACK, QUIET

#: As `infra.cluster` sets them, and what a Ray cluster itself is told: to look after its nodes more often.
ENVIRONMENT = {
    **QUIET,
    **LOOPBACK,
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
}
NOTICE_SECONDS = 8
EPOCHS = 60
RESIZE_SECONDS = 2.0


def main(folder: Path, kind: str) -> None:
    """Train on two nodes, lose one, go on with the other, get another, and finish on two."""
    os.environ.update(ENVIRONMENT)
    import ray
    from ray.cluster_utils import Cluster

    from tests.faults import dying_trainer
    from tests.train.test_trainer import SASREC, request_for
    from train import trainer

    node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20}
    head = {**node, "num_cpus": 0, "include_dashboard": False}
    # Not at exit: its signal handler would forbid adding a node from another thread.
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    cluster.add_node(**node)
    lost = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    run = folder / "runs" / "nodes"
    run.mkdir(parents=True)
    (run / "fault.json").write_text(json.dumps({"pause": 0.4}))
    told: list[dict[str, Any]] = []
    events: dict[str, float] = {}

    def wait_for(workers: int) -> None:
        """Until the latest reports are of so many workers, or for ever so long: the test looks at what came of it."""
        deadline = time.monotonic() + 150
        while [m["workers"] for m in told[-3:]] != [workers] * 3 and time.monotonic() < deadline:
            time.sleep(0.1)

    def disturb() -> None:
        wait_for(2)
        events["lost"] = time.monotonic()
        if kind == "drain":
            drain(cluster.address, lost)
            time.sleep(NOTICE_SECONDS)
        cluster.remove_node(lost, allow_graceful=False)
        wait_for(1)
        events["went on"] = time.monotonic()
        cluster.add_node(**node)
        wait_for(2)
        (run / "fault.json").unlink()  # the rest need not be slow

    disturber = threading.Thread(target=disturb)
    trainer.train_worker = dying_trainer.train_worker
    trainer._RESIZE_SECONDS = RESIZE_SECONDS
    # A node that goes with a notice leaves a checkpoint without any that would have been made anyway.
    often = {"checkpoint_seconds": 0.0001} if kind == "kill" else {"checkpoint_seconds": 0, "checkpoint_every": EPOCHS}
    settings = {"epochs": EPOCHS, "workers": (1, 2), "max_failures": 5, **often}
    request = request_for(folder, SASREC, "nodes", **settings)
    try:
        disturber.start()
        metrics = trainer.fit(request, folder / "model", folder / "runs", told.append)
        disturber.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    seconds = events["went on"] - events["lost"]
    print(json.dumps({"workers": [m["workers"] for m in told], "seconds_to_go_on": seconds, "metrics": metrics}))


def drain(address: str, node: Any) -> None:
    """What a cloud's notice of a spot machine's end becomes in Ray."""
    import ray
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + NOTICE_SECONDS) * 1000)
    client = ray._raylet.GcsClient(address=address)
    assert client.drain_node(node._node_id, reason, "test", deadline)[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
