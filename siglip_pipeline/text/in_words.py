"""Sizes, durations and times for people. Documents of ``--json`` keep the numbers."""

from datetime import UTC, datetime
from typing import Final

_SIZES: Final = ("kB", "MB", "GB", "TB", "PB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def size_in_words(size_bytes: int) -> str:
    """Return a size in units of a thousand, such as ``1.2 GB``."""
    if size_bytes < 1000:
        return counted(size_bytes, "byte")
    value = float(size_bytes)
    for unit in _SIZES:
        value /= 1000
        if value < 999.5 or unit == _SIZES[-1]:
            break
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"


def duration_in_words(seconds: float) -> str:
    """Return a duration in its two largest units, such as ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return _two(whole, _MINUTE, "min", 1, "s")
    whole = _MINUTE * round(seconds / _MINUTE)
    if whole < _DAY:
        return _two(whole, _HOUR, "h", _MINUTE, "min")
    days, rest = divmod(_HOUR * round(seconds / _HOUR), _DAY)
    return counted(days, "day") + (f" {rest // _HOUR} h" if rest else "")


def ago_in_words(moment: datetime, now: datetime | None = None) -> str:
    """Return how long ago a moment was, such as ``2 hours ago``; from a month on, its date."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < _MINUTE:
        return "just now"
    for size, unit, most in ((_MINUTE, "minute", _HOUR), (_HOUR, "hour", _DAY)):
        if seconds < most:
            return f"{counted(int(seconds // size), unit)} ago"
    if seconds < 30 * _DAY:
        return f"{counted(int(seconds // _DAY), 'day')} ago"
    return f"on {moment:%Y-%m-%d}"


def _two(whole: int, large: int, large_unit: str, small: int, small_unit: str) -> str:
    count, rest = divmod(whole, large)
    return f"{count} {large_unit}" + (f" {rest // small} {small_unit}" if rest else "")


def counted(count: int, one: str, more: str | None = None) -> str:
    """Return a count with its noun, such as ``1 video`` or ``2,000 videos``.

    Args:
        count: how many.
        one: the noun for one.
        more: the noun for others; None: with an s.
    """
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def in_one_line(text: object) -> str:
    """Return the lines of a text as one; libpq's messages have several, and tabs."""
    return "; ".join(line.strip() for line in str(text).splitlines() if line.strip())
