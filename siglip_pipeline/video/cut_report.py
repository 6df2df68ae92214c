"""What a clip holds. Parents import this module, so it imports no av."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CutReport:
    """What was written."""

    frames: int
    silent_because: str | None
    """Why there is no sound although the upload has some there."""
