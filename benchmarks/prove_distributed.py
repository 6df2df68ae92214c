"""Do several hosts index a collection once and exactly, and do they outlive faults?

Two CPU and two embedding workers and a control host that share Postgres over TCP, a broker and an
S3 server (siglip_pipeline_tests/distributed/proof.py). With --faults an embedding worker is killed
in the middle of a step and started again, the broker is away for 20 s, and Postgres is restarted.

    python benchmarks/prove_distributed.py [--videos 40] [--faults] [--rabbitmq] [--folder DIR]

With --folder every host's log is kept there; with --postgres-away Postgres stays away for so long.
"""

import argparse
import json
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from store_report import machine, versions

from siglip_pipeline.services.signals import heed_interrupts
from siglip_pipeline_tests.distributed.proof import (
    Fault,
    Proof,
    kill_an_embedder,
    restart_postgres,
    stop_the_broker,
)
from siglip_pipeline_tests.distributed.services import RabbitServer, RedisServer


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--postgres-away", type=float, default=0, metavar="SECONDS")
    parser.add_argument("--rabbitmq", action="store_true", help="as the broker, instead of Redis")
    parser.add_argument("--folder", type=Path, help="a new folder for the hosts; kept")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        if options.folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="siglip-hosts-")
            folder = Path(stack.enter_context(temporary))
        else:
            folder = options.folder.resolve()
            folder.mkdir(parents=True)
        document = prove(
            folder,
            options.videos,
            faults(options.postgres_away) if options.faults else [],
            RabbitServer if options.rabbitmq else RedisServer,
        )
    print(json.dumps(document, indent=1))
    return 0 if document["exact"] and document["model_loaded_once_per_life"] else 1


def faults(postgres_away_seconds: float) -> list[Fault]:
    """What strikes, and when."""
    return [
        Fault(0.2, kill_an_embedder),
        Fault(0.4, stop_the_broker),
        Fault(0.6, partial(restart_postgres, away_seconds=postgres_away_seconds)),
    ]


def prove(
    folder: Path,
    videos: int,
    strikes: Sequence[Fault],
    broker: type[RedisServer] | type[RabbitServer],
) -> dict[str, Any]:
    with Proof.started(folder, broker(folder / "broker"), videos=videos) as proof:
        proof.run(strikes)
        return {
            "benchmark": "distributed",
            "machine": machine(),
            "versions": versions(),
            "broker": broker.__name__.removesuffix("Server"),
            **proof.report(),
        }


if __name__ == "__main__":
    heed_interrupts()
    # Whoever ends this means its hosts too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    sys.exit(main())
