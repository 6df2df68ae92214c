"""What `up` says of a service that ended."""

import logging
import os
import sys
from pathlib import Path

import pytest

from siglip_pipeline.services.up import Endpoints, Launcher, _Service
from siglip_pipeline.settings import Settings


def test_a_service_that_ends_is_told_of_in_short_plain_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its log has the colours of a terminal, and a line of 3,500 characters."""
    talk = r"for _ in range(9): print('\x1b[32m' + 'x' * 3500 + '\x1b[0m')"
    noisy = _Service("noisy", [sys.executable, "-c", talk], tmp_path / "noisy.log")
    endpoints = Endpoints(
        dagster_url="http://127.0.0.1:1",
        page_url="http://127.0.0.1:2",
        code_socket=tmp_path / "socket",
        dagster_home=tmp_path,
    )
    launcher = Launcher(Settings.load(home=tmp_path), endpoints, [noisy])
    noisy.start({**os.environ}, tmp_path)
    assert noisy.process is not None
    noisy.process.wait()
    with caplog.at_level(logging.WARNING):
        launcher.watch()
    launcher.stop()
    assert caplog.messages[0] == "noisy ended with status 0: starting it again"
    assert 1 < len(caplog.messages) <= 4
    for message in caplog.messages:
        assert "\n" not in message
        assert "\x1b" not in message
        assert len(message) < 500
