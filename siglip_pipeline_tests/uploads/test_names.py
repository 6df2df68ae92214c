"""Which names are usable, under which key Dagster knows them, and how they are shown."""

import re

import pytest

from siglip_pipeline.errors import QueryError
from siglip_pipeline.uploads.names import (
    no_upload_has,
    partition_key,
    path_of_partition,
    percent_encoded,
    same_name,
    shown,
    unusable,
)

ODD = "a folder in its name is empty, . or ..; rename it"
COMPOSED, DECOMPOSED = "caf\u00e9.mp4", "cafe\u0301.mp4"


@pytest.mark.parametrize(
    "path", ["a.mp4", "a/b.mp4", "...mp4", "a/.b", "a..b", "%" * 666, "a" * 2000, "é" * 1000]
)
def test_a_name_that_can_be_kept(path: str) -> None:
    assert unusable(path) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        *((odd, ODD) for odd in ("", "/a", "a/", "a//b", ".", "./a", "a/./b", "..", "a/..")),
        *((f"é{odd}", ODD) for odd in ("/", "//b", "/./b", "/..")),
        ("a/../" + "b" * 700, ODD),
        ("a\udcff.mp4", "its name is not valid UTF-8; rename it"),
        ("a\0.mp4", "its name holds a NUL character; rename it"),
        ("a" * 2001, "its name takes 2001 bytes, at most 2000 can be kept; rename it"),
        ("%" * 667, "its name takes 2001 bytes, at most 2000 can be kept; rename it"),
        ("\n" * 667, "its name takes 2001 bytes, at most 2000 can be kept; rename it"),
        ("é" * 1001, "its name takes 2002 bytes, at most 2000 can be kept; rename it"),
        ("\U0001f600" * 501, "its name takes 2004 bytes, at most 2000 can be kept; rename it"),
    ],
)
def test_a_name_that_cannot_be_kept_is_refused_for_its_reason(path: str, reason: str) -> None:
    assert unusable(path) == reason


@pytest.mark.parametrize("key", ["a.mp4", "100%25.mp4", "so%2E%2E%2E.mp4", "a%09b", "p/é.mp4"])
def test_a_partition_that_an_upload_can_have(key: str) -> None:
    assert no_upload_has(key) is None


@pytest.mark.parametrize(
    ("key", "shard", "reason"),
    [
        (
            "../a",
            None,
            "can have the name of this partition: a folder in its name is empty, . or ..",
        ),
        ("%FF.mp4", None, "can have the name of this partition: its name is not valid UTF-8"),
        ("a" * 2001, None, "its name takes 2001 bytes, at most 2000 can be kept"),
        ("%41.mp4", None, "has this partition, an upload 'A.mp4' has 'A.mp4'"),
        ("so....mp4", None, "an upload 'so....mp4' has 'so%2E%2E%2E.mp4'"),
        ("a\nb", None, r"an upload 'a\nb' has 'a%0Ab'"),
        ("2024/a.mp4", "2025", "no upload of the shard 2025 can have this partition"),
    ],
)
def test_a_partition_that_no_upload_can_have(key: str, shard: str | None, reason: str) -> None:
    told = no_upload_has(key, shard=shard) or ""
    assert reason in told
    assert told.endswith("; delete the partition")
    assert no_upload_has("2025/a.mp4", shard="2025") is None


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a/b ü.mp4", "a/b ü.mp4"),
        ("100%.mp4", "100%25.mp4"),
        ("so....mp4", "so%2E%2E%2E.mp4"),
        ("a\tb\u202ec", "a%09b%E2%80%AEc"),
        ("\udcff\udc80", "%FF%80"),
        ("a\u200db", "a%E2%80%8Db"),
        ("a\u3164b", "a%E3%85%A4b"),  # Python calls this filler printable
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),
    ],
)
def test_the_key_of_a_name(path: str, key: str) -> None:
    assert partition_key(path) == key
    assert path_of_partition(key) == path


def test_a_name_is_found_in_either_unicode_form_unless_there_are_several() -> None:
    assert same_name(DECOMPOSED, ["a.mp4", COMPOSED]) == COMPOSED
    assert same_name(COMPOSED, [DECOMPOSED, "a.mp4"]) == DECOMPOSED
    assert same_name(COMPOSED, ["a.mp4", "Caf\u00e9.mp4", "z.mp4"]) is None
    named = f"{COMPOSED!r} names several videos, .*: 'cafe\\\\u0301.mp4', 'caf\\\\xe9.mp4'; give"
    with pytest.raises(QueryError, match=named):
        same_name(COMPOSED, [COMPOSED, DECOMPOSED])


def test_chosen_characters_and_percent_signs_are_encoded_by_byte() -> None:
    assert percent_encoded("50% of a?b", re.compile(r"[?é]")) == "50%25 of a%3Fb"
    assert percent_encoded("é", re.compile("é")) == "%C3%A9"


@pytest.mark.parametrize(
    ("text", "on_screen"),
    [
        ("a/b ü.mp4", "a/b ü.mp4"),
        ("a\n\x7f", "a\\n\\x7f"),
        ("a\u202eb", "a\\u202eb"),
        ("\udc80\udcff", "\\x80\\xff"),
        ("\udc7f\udd00\ud800", "\\udc7f\\udd00\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text: str, on_screen: str) -> None:
    assert shown(text) == on_screen
