"""An object store that answers with errors, late, or with half of what it promised."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import pytest

from siglip_pipeline.store.database import Database
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.faults.bad_proxy import BadProxy, Fault
from siglip_pipeline_tests.faults.conftest import Make, Reference
from siglip_pipeline_tests.faults.harness import (
    FILMS,
    Pipeline,
    Stored,
    Zygote,
    read_stored,
    started_zygote,
)
from siglip_pipeline_tests.s3 import s3_environment, s3_options, s3_server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

REASONS = {
    "/uploads/": r"the storage failed after \d+ bytes: .+; materialize it again",
    "/frames-": r"frames cannot be (written|opened|read) .+",
}
"""What is said of a storage that fails throughout."""
TRIES = 6
"""Of a step: one and five retries."""
TRANSIENT: list[Fault] = ["500", "503", "hang", "cut", "reset"]


@dataclass(frozen=True)
class Bucket:
    """A store, the proxy in front of it, and a starter of commands that know only the proxy."""

    proxy: BadProxy
    options: dict[str, str]
    """To reach the store past the proxy."""
    zygote: Zygote


@pytest.fixture(scope="module")
def bucket(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    log = tmp_path_factory.mktemp("bucket") / "zygote"
    with s3_server() as address:
        options = s3_options(address)
        fs = fsspec.filesystem("s3", **options)
        fs.mkdir("uploads")
        for name in FILMS:
            fs.put_file(str(films / name), f"uploads/{name}")
        with BadProxy(address).running() as proxy, log.open("ab") as output:
            environment = {
                **s3_environment(proxy.url),
                "FSSPEC_S3": '{"config_kwargs": {"read_timeout": 3, "connect_timeout": 3}}',
            }
            prefix = ["env", *(f"{name}={value}" for name, value in environment.items())]
            with started_zygote(output, prefix=prefix) as zygote:
                yield Bucket(proxy, options, zygote)


@pytest.fixture
def pipeline(bucket: Bucket, make_pipeline: Make, tmp_path: Path) -> Pipeline:
    """Uploads and frames in the store; every test has frames of its own."""
    bucket.proxy.behave()
    bucket.proxy.struck.clear()
    made = make_pipeline(
        uploads="s3://uploads", frame_store=f"s3://frames-{os.getpid()}-{tmp_path.name}".lower()
    )
    fs = fsspec.filesystem("s3", **bucket.options)
    url = made.settings.frame_store_url.reveal().replace("_", "-")
    fs.mkdir(url.removeprefix("s3://"))
    settings = made.settings.model_copy(update={"frame_store": url})
    return replace(made, zygote=bucket.zygote, settings=settings)


def stored(pipeline: Pipeline, bucket: Bucket) -> Stored:
    frames = FrameStore(pipeline.settings.frame_store_url, storage_options=bucket.options)
    with Database(pipeline.settings.database_url or "") as database:
        return read_stored(database, frames)


@pytest.mark.parametrize("fault", TRANSIENT)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_fault_that_passes_costs_nothing(
    method: str, fault: Fault, bucket: Bucket, pipeline: Pipeline, reference: Reference
) -> None:
    bucket.proxy.methods, bucket.proxy.path_part = {method}, "mp4"
    bucket.proxy.faults.extend([fault, fault])
    status = pipeline.run()
    assert {struck[0] for struck in bucket.proxy.struck} == {fault}
    if status != 0:  # it said so, and the next run is whole
        assert pipeline.run("materialize", "--failed", "--json") in (0, 2), pipeline.said[-4000:]
        assert pipeline.run() == 0, pipeline.said[-6000:]
    assert stored(pipeline, bucket) == reference.stored
    print(f"{method} {fault}: first run ended with {status}")


@pytest.mark.parametrize("fault", ["500", "cut"])
@pytest.mark.parametrize("part", ["/uploads/", "/frames-"], ids=["uploads", "frames"])
def test_a_fault_that_stays_is_said_and_then_made_good(
    part: str, fault: Fault, bucket: Bucket, pipeline: Pipeline, reference: Reference
) -> None:
    bucket.proxy.methods, bucket.proxy.path_part = {"GET", "PUT"}, part
    bucket.proxy.always = fault
    status = pipeline.run()
    assert status in (1, 2), pipeline.said[-4000:]
    assert bucket.proxy.struck
    found = stored(pipeline, bucket)
    assert re.search(REASONS[part], pipeline.said), pipeline.said[-4000:]
    if part == "/uploads/":
        assert found.failures.keys() == FILMS.keys()
        for reason in found.failures.values():
            assert re.fullmatch(REASONS[part], reason)
    for video, rows in found.frames.items():
        assert rows in ([], reference.stored.frames[video])
    for key, vector in found.vectors.items():
        assert vector == reference.stored.vectors[key]
    bucket.proxy.behave()
    assert pipeline.run("materialize", "--failed", "--json") == 0, pipeline.said[-4000:]
    pipeline.finish()
    assert stored(pipeline, bucket) == reference.stored


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_an_upload_that_cannot_be_read_fails_alone(
    fault: Fault, bucket: Bucket, pipeline: Pipeline
) -> None:
    bucket.proxy.methods, bucket.proxy.path_part = {"GET"}, "/uploads/b.mkv"
    bucket.proxy.always = fault
    assert pipeline.run() == 1, pipeline.said[-4000:]
    found = stored(pipeline, bucket)
    assert found.failures.keys() == {"b.mkv"}
    assert re.fullmatch(REASONS["/uploads/"], found.failures["b.mkv"]), found.failures
    assert found.states == {name: "failed" if name == "b.mkv" else "indexed" for name in FILMS}
    # Each try of the step asks, and the client of the storage asks again by itself.
    assert len(bucket.proxy.struck) >= TRIES
