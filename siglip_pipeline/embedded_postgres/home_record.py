"""The record in a home of the clusters that it has used, which may lie outside it.

A cluster below ``/var/lib/siglip-pipeline`` outlives its home: it is found by the home's path. The
record holds the folder of each cluster by the identifier that initdb gave it, the newest last.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from siglip_pipeline.files.flushing import to_disk
from siglip_pipeline.files.replacing import replacing

logger = logging.getLogger(__name__)

NAME = "postgres.cluster"


def _cluster_id(data: Path) -> str | None:
    """Return a cluster's ``Database system identifier`` (pg_controldata); None if none can be read.

    It begins the control file, in the byte order of the machine.
    """
    try:
        with (data / "global" / "pg_control").open("rb") as file:
            head = file.read(8)
    except OSError:
        return None
    return head.hex() if len(head) == 8 else None


@contextmanager
def recorded(home: Path, data: Path) -> Iterator[None]:
    """Warn if a home is about to use a cluster that it has not used before; then record its use.

    Args:
        home: ``SIGLIP_HOME``; no other process writes its record meanwhile.
        data: the folder of the cluster; missing if the block makes it.
    """
    known = _read(home)
    _warn_of_change(home, data, known)
    yield
    found = _cluster_id(data)
    if found is not None and known.get(found) != str(data):
        known.pop(found, None)
        with replacing(home / NAME) as file:
            file.write(json.dumps({**known, found: str(data)}).encode())
        to_disk(home)


def _warn_of_change(home: Path, data: Path, known: dict[str, str]) -> None:
    found = _cluster_id(data)
    if found is None:
        formers = [
            Path(folder) for id_, folder in known.items() if _cluster_id(Path(folder)) == id_
        ]
        if formers:
            logger.warning(
                "%s has used the database in %s until now, and gets a new, empty one in %s: the "
                "home was moved, or its mode changed. To keep the former: stop everything, then "
                "rm -r %s && mv %s %s",
                *(home, formers[-1], data),
                *(quote(str(path)) for path in (data, formers[-1], data)),
            )
    elif found not in known and not data.is_relative_to(home):
        logger.warning(
            "%s has no record of the database in %s, which an earlier home at this path has left "
            "(or an earlier version of siglip-pipeline has used); it is used as it is. To keep it, "
            "do nothing. To begin with an empty one: stop everything, then rm -r %s",
            *(home, data, quote(str(data))),
        )


def _read(home: Path) -> dict[str, str]:
    """Return the record; empty if it is missing or damaged."""
    try:
        read = json.loads((home / NAME).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
