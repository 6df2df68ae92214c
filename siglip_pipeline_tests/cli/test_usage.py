"""What a command says about options that it cannot use."""

import io
import json
import sys
from pathlib import Path

import pytest

from siglip_pipeline.cli import main as cli


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search"], "give TEXT"),
        (["search", "a", "-k", "many"], "integer"),
        (["search", "a", "--sins", "2026-11-30"], "No such option: --sins"),
        (["search", "a", "--since", "20261130"], "a date, such as 2026-11-30"),
        (["search", "a", "--until", "-1"], "a date, such as 2026-11-30"),
        (["watch", "gone"], "No such command"),
    ],
)
def test_options_that_cannot_be_used_are_a_document_too(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = _run(*arguments, "--json")
    assert code == 2
    error = json.loads(printed)["error"]
    assert error["type"] == "UsageError"
    assert said in error["message"]
    assert "Usage:" in capsys.readouterr().err


def test_what_follows_two_dashes_is_no_option() -> None:
    assert _run("search", "--k", "many", "--", "--json") == (2, "")


@pytest.mark.parametrize("more", [(), ("--prove",)], ids=["may ask a service", "by itself"])
def test_an_empty_name_is_not_left_out(more: tuple[str, ...]) -> None:
    """Of an unset variable: a service that leaves it out would search all videos."""
    code, printed = _run("search", "a", "--video", "", *more, "--json")
    assert code == 2
    assert "an empty name is no video" in json.loads(printed)["error"]["message"]


def _run(*arguments: str) -> tuple[int, str]:
    """The exit code of a command, and what it printed on stdout."""
    out, before = io.StringIO(), (sys.argv, sys.stdout)
    sys.argv, sys.stdout = ["siglip-pipeline", *arguments], out
    try:
        cli.main()
    except SystemExit as exited:
        return int(exited.code or 0), out.getvalue()
    finally:
        sys.argv, sys.stdout = before
    raise AssertionError("it exits")


@pytest.mark.parametrize(
    ("place", "said"), [("film.mp4", "is no folder"), ("film.mp4/below", "cannot be made")]
)
def test_up_says_that_the_uploads_are_no_folder(
    place: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It said "Put videos into the uploads folder", and found none."""
    (tmp_path / "film.mp4").write_bytes(b"")
    monkeypatch.setenv("SIGLIP_UPLOADS", str(tmp_path / place))
    monkeypatch.setenv("SIGLIP_HOME", str(tmp_path / "home"))
    assert _run("up") == (2, "")
    assert f"SIGLIP_UPLOADS={tmp_path / place} {said}" in capsys.readouterr().err
