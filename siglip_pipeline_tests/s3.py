"""A real S3 API on 127.0.0.1, for tests of uploads and frames in buckets."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx
import pytest

ACCESS: Final = {"key": "testing", "secret": "testing"}
"""What fsspec shows at the door."""


@contextmanager
def s3_server() -> Iterator[str]:
    """Its URL; a test is skipped where moto is not installed. One at a time: they share buckets."""
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # What an earlier server of this process held is there otherwise.
        httpx.post(f"http://{host}:{port}/moto-api/reset", timeout=60).raise_for_status()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3_options(url: str) -> dict[str, Any]:
    """Options by which fsspec reaches it, whatever the environment says."""
    return {"endpoint_url": url, **ACCESS}


def s3_environment(url: str) -> Mapping[str, str]:
    """The environment by which every process of a pipeline finds it in Amazon's place."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS["key"],
        "AWS_SECRET_ACCESS_KEY": ACCESS["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }
