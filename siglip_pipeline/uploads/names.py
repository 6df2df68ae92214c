"""Names of uploads: which are usable, and how they are shown.

A name is data. It is stored unchanged, and two names that differ in a single byte are two videos:
case and Unicode normalisation are kept. For display, characters that are invisible or change the
text around them are spelled out.
"""

import re
from collections.abc import Iterable
from typing import Final
from unicodedata import normalize
from urllib.parse import unquote_to_bytes

from siglip_pipeline.errors import QueryError

MAX_NAME_BYTES: Final = 2000
"""Longest path, as encoded for Dagster. Postgres cannot index a text of more than 2,700 bytes."""

# Controls, invisible characters, and those that change the text direction. The joiners U+200C
# and U+200D are left where scripts and emoji need them: after a character outside of ASCII.
_HIDDEN = (
    "\\x00-\\x1f\\x7f-\\x9f\\xad\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180e\\u200b\\u200e\\u200f"
    "\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb\\U000e0000-\\U000e007f"
)
HIDDEN: Final = re.compile(f"[{_HIDDEN}\\ud800-\\udfff]|(?:(?<=[\\x00-\\x7f])|^)[\\u200c\\u200d]")
"""One character that a reader would not see, or would mistake for another."""


_KEY_CHARACTERS = re.compile(f"%|{HIDDEN.pattern}")

# Object stores allow these names; on a disk they are other names of the same file.
_ODD_PART = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")
_ODD_FOLDER = "a folder in its name is empty, . or ..; rename it"


def unusable(path: str) -> str | None:
    """Return why a path cannot be the name of a video; None if it can."""
    if path.isascii() and path.isprintable() and len(path) < MAX_NAME_BYTES // 3:
        return _ODD_FOLDER if _ODD_PART.search(path) else None  # nearly all of 100,000 names
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    if "\0" in path:
        return "its name holds a NUL character; rename it"
    if _ODD_PART.search(path):
        return _ODD_FOLDER
    if (size := len(partition_key(path).encode())) > MAX_NAME_BYTES:
        return f"its name takes {size} bytes, at most {MAX_NAME_BYTES} can be kept; rename it"
    return None


def partition_key(path: str) -> str:
    """Return an upload's partition key: its path, with problematic characters percent-encoded.

    Dagster refuses "..." and some control characters in dynamic partition keys
    (its INVALID_PARTITION_SUBSTRINGS); other hidden characters would mislead a reader of the key.
    Bytes that are not UTF-8 (surrogate escapes, as Python lists them) are encoded one by one, so
    every file name that a disk can hold has a key, and no two share one.
    """
    if path.isascii() and path.isprintable() and "%" not in path and "..." not in path:
        return path  # nearly all of 100,000 names
    return _KEY_CHARACTERS.sub(_percent_encoded, path).replace("...", "%2E%2E%2E")


def path_of_partition(key: str) -> str:
    """Return the upload's path below UPLOADS; the inverse of :func:`partition_key`."""
    return unquote_to_bytes(key).decode("utf-8", "surrogateescape")


def no_upload_has(key: str, *, shard: str | None = None) -> str | None:
    """Return why no upload of a shard can have this partition key; None if one can.

    Dagster's UI lets people add partitions of any name.
    """
    path = path_of_partition(key)
    if shard is not None and not path.startswith(f"{shard}/"):
        return f"no upload of the shard {shard} can have this partition; delete the partition"
    if (reason := unusable(path)) is not None:
        return (
            f"no upload can have the name of this partition: {reason.partition(';')[0]}; delete "
            "the partition"
        )
    if (right := partition_key(path)) != key:
        return (
            f"no upload has this partition, an upload '{shown(path)}' has '{right}'; delete the "
            "partition"
        )
    return None


def same_name(name: str, paths: Iterable[str]) -> str | None:
    """Return the path that is canonically equivalent to a name; None if there is none.

    Raises:
        QueryError: several paths are.
    """
    form = normalize("NFC", name)
    alike = sorted(path for path in paths if normalize("NFC", path) == form)
    if len(alike) > 1:
        raise QueryError(
            f"{name!r} names several videos, which differ in their Unicode form only: "
            f"{', '.join(map(ascii, alike))}; give one of them in exactly that form"
        )
    return alike[0] if alike else None


def percent_encoded(text: str, characters: re.Pattern[str]) -> str:
    """Return the text with these characters, and every ``%``, as ``%XX`` per byte."""
    return re.sub(f"%|{characters.pattern}", _percent_encoded, text)


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def shown(text: str) -> str:
    r"""Return a name or message on one line, with invisible characters spelled out.

    >>> shown("a\u202egpj.mp4")
    'a\\u202egpj.mp4'
    """
    return HIDDEN.sub(lambda match: _escape(match[0]), text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8, as Python lists it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
