"""Parts of a video, as curl asks for them and puts them together."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from siglip_pipeline.embedded_postgres.server import EmbeddedPostgres
from siglip_pipeline.records import Stage
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline_tests.conftest import collection_settings, fresh_database
from siglip_pipeline_tests.web.conftest import serving

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None and not os.environ.get("CI"), reason="curl is not installed"
)

CONTENT = random.Random(1).randbytes(700_001)
REFUSED = 22
"""Exit status of ``curl --fail``."""


@pytest.fixture(scope="module")
def url(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a video's bytes."""
    home = tmp_path_factory.mktemp("curl")
    with fresh_database(postgres) as database_url:
        settings = collection_settings(home, database_url)
        (home / "uploads" / "a.mp4").write_bytes(CONTENT)
        with Database(database_url) as database:
            VideoStore(database).record_failure("a.mp4", stage=Stage.FRAMES, reason="none yet")
        with serving(settings) as running:
            (video,) = running.client.get("/api/videos").json()["videos"]
            yield f"{running.url}/api/videos/{video['video_id']}/stream"


def curl(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = ["curl", "--silent", "--fail", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("0-0", CONTENT[:1]),
        ("5-99", CONTENT[5:100]),
        ("65535-65536", CONTENT[65535:65537]),
        ("-10", CONTENT[-10:]),
        ("700000-", CONTENT[-1:]),
        ("699990-999999", CONTENT[-11:]),
    ],
)
def test_a_part_is_the_part(url: str, part: str, expected: bytes) -> None:
    assert curl("--range", part, url).stdout == expected


def test_a_part_beyond_the_end_is_refused(url: str) -> None:
    done = curl("--write-out", "%{http_code}", "--range", "700001-", url)
    assert (done.returncode, done.stdout) == (REFUSED, b"416")


@pytest.mark.parametrize("there", [1, 65536, 700_000])
def test_a_download_that_broke_off_is_resumed(url: str, there: int, tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    target.write_bytes(CONTENT[:there])
    done = curl("--continue-at", "-", "--output", str(target), "--write-out", "%{http_code}", url)
    assert (done.returncode, done.stdout) == (0, b"206")
    assert target.read_bytes() == CONTENT


def test_a_player_may_seek(url: str) -> None:
    headers = curl("--head", url).stdout.decode().lower()
    assert "accept-ranges: bytes" in headers
    assert f"content-length: {len(CONTENT)}" in headers
