"""The demo's films, rendered once for all tests here."""

from pathlib import Path

import pytest

from siglip_pipeline.demo.films import DemoVideo, render_demo_videos


@pytest.fixture(scope="session")
def demo_videos(tmp_path_factory: pytest.TempPathFactory) -> list[DemoVideo]:
    folder: Path = tmp_path_factory.mktemp("demo_videos")
    return render_demo_videos(folder)
