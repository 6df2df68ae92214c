"""Translate globs over paths to regular expressions that mean the same in Python and Postgres."""

import re

_REPEATED = re.compile(r"(\*\*/)+")
_WILDCARD = re.compile(r"[*?\[]")
# Characters that mean something in a regular expression of either kind.
_SPECIAL = re.compile(r"([\\.^$|+(){}\[\]*?])")


def is_glob(pattern: str) -> bool:
    """Return whether the text has a wildcard; without one it is a path."""
    return _WILDCARD.search(pattern) is not None


def glob_regex(pattern: str) -> str:
    r"""Return a regular expression that matches the whole path.

    ``*`` and ``?`` stay within a folder, ``**`` does not; ``[abc]``, ``[a-z]`` and ``[!a]`` match
    one character. A pattern without ``/`` matches the file's name, in any folder.

    >>> glob_regex("holiday/*.mp4")
    '^holiday/[^/]*\\.mp4$'
    """
    if "/" not in pattern:
        pattern = f"**/{pattern}"
    # Repeated ones mean the same as one, but each multiplies the work of matching.
    pattern = _REPEATED.sub("**/", pattern)
    parts = ["^"]
    i = 0
    while i < len(pattern):
        if pattern.startswith("**/", i):
            parts.append("(.*/)?")
            i += 3
        elif pattern.startswith("**", i):
            parts.append(".*")
            i += 2
        elif pattern[i] == "*":
            parts.append("[^/]*")
            i += 1
        elif pattern[i] == "?":
            parts.append("[^/]")
            i += 1
        elif (end := _class_end(pattern, i)) is not None:
            parts.append(_character_class(pattern[i + 1 : end]))
            i = end + 1
        else:
            parts.append(_SPECIAL.sub(r"\\\1", pattern[i]))
            i += 1
    return "".join([*parts, "$"])


def _class_end(pattern: str, start: int) -> int | None:
    """Return where the ``[…]`` that starts here ends; None for a literal bracket."""
    if pattern[start] != "[":
        return None
    # A closing bracket in first position is a member, not the end.
    first = start + 2 if pattern[start + 1 : start + 2] == "!" else start + 1
    end = pattern.find("]", first + 1)
    return None if end < 0 else end


def _character_class(members: str) -> str:
    """Match one of these characters by alternatives: ``[…]`` differs between the dialects."""
    negated = members.startswith("!")
    members = members[1:] if negated else members
    ranges: list[tuple[str, str]] = []
    i = 0
    while i < len(members):
        if members[i + 1 : i + 2] == "-" and i + 2 < len(members):
            ranges.append((members[i], members[i + 2]))
            i += 3
        else:
            ranges.append((members[i], members[i]))
            i += 1
    alternatives = "|".join(_range(low, high) for low, high in ranges if low <= high)
    if not alternatives:  # a range that ends before it starts is empty
        return "[^/]" if negated else "(?!.*)"
    return f"(?!{alternatives})[^/]" if negated else f"({alternatives})"


def _range(low: str, high: str) -> str:
    if low == high:
        return _SPECIAL.sub(r"\\\1", low)
    return f"[{_member(low)}-{_member(high)}]"


def _member(character: str) -> str:
    return f"\\{character}" if character in "\\]^-[" else character
