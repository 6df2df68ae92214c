"""Sampling policies, which select the frames of a video.

A policy is a pure function of the presentation timestamps (and, for ``scenes``, of the beginnings
of shots), so a plan can be made before decoding. Every policy gives strictly increasing positions,
includes the first frame, and is not empty if the video has a frame.

Imports no numpy, as `status` reads policies: :mod:`.frame_selection` applies them.
"""

import re
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Generic, Literal, TypeVar

from siglip_pipeline.errors import SettingsError

SamplingKind = Literal["fps", "every", "keyframes", "scenes"]

MAX_FPS: Final = Fraction(1000)
"""Largest rate of ``fps``. Cameras are slower, so a larger number is probably a mistake."""

SCENE_MAX_GAP_SECONDS: Final = 10
"""Largest distance of two samples of a shot, for ``scenes``, if there are frames between them."""

STEP: Final = 1.25
"""Ratio of the distances of frames that may become the middle of a shot."""
SPREAD: Final = Fraction(4, 5)
"""Share of twice the largest gap that a middle can divide, given this ratio."""

Item = TypeVar("Item")

ALLOWED: Final = (
    "allowed: fps:N (frames a second, such as fps:1, fps:0.5, fps:1/60), every:N (every Nth "
    "frame), keyframes, scenes"
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """A sampling policy; ``str()`` gives its canonical text."""

    kind: SamplingKind
    rate: Fraction | None = None
    """Frames per second, for ``fps``."""
    stride: int | None = None
    """Frames from one sample to the next, for ``every``."""

    @classmethod
    def parse(cls, text: str) -> "Sampling":
        """Read ``fps:N``, ``every:N``, ``keyframes`` or ``scenes``.

        Raises:
            SettingsError: the text is not a policy, or its number is out of range.
        """
        name, colon, number = text.strip().lower().partition(":")
        if name in ("keyframes", "scenes") and not colon:
            return cls("keyframes" if name == "keyframes" else "scenes")
        if name == "fps" and re.fullmatch(r"\d+(\.\d+)?|\.\d+|\d+/0*[1-9]\d*", number):
            rate = Fraction(number)
            if 0 < rate <= MAX_FPS:
                return cls("fps", rate=rate)
            raise SettingsError(
                f"SIGLIP_SAMPLING={text!r}: the rate must be above 0 and at most {MAX_FPS}"
            )
        if name == "every" and re.fullmatch(r"\d{1,9}", number) and int(number) > 0:
            return cls("every", stride=int(number))
        raise SettingsError(f"SIGLIP_SAMPLING={text!r} is not a sampling; {ALLOWED}")

    def __str__(self) -> str:
        if self.kind == "fps":
            return f"fps:{self.rate}"
        return f"every:{self.stride}" if self.kind == "every" else self.kind


class SceneSampler(Generic[Item]):
    """Selects the first, a middle and the last frame of each shot, in one pass over all frames.

    No two samples of a shot are more than ``SCENE_MAX_GAP_SECONDS`` apart, if there are frames
    between them. The middle is known only when the shot has ended, so the sampler holds a few
    frames that may become it, each a quarter further from the last sample than the one before.

    Args:
        time_base: seconds per unit of timestamps.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._max_gap = int(SCENE_MAX_GAP_SECONDS / time_base)
        self._max_spread = int(2 * SPREAD * self._max_gap)
        self._anchor = 0
        """Time of the last sample."""
        self._held: deque[tuple[int, Item]] = deque()
        self._last: tuple[int, Item] | None = None

    def add(self, pts: int, item: Item, *, begins_shot: bool) -> list[Item]:
        """Take the next frame; return the frames before it, or itself, that are now selected."""
        if self._last is None or begins_shot:
            selected = self.finish()
            self._anchor, self._last = pts, (pts, item)
            return [*selected, item]
        selected = []
        while pts - self._anchor > self._max_spread and self._held:
            near = [one for one in self._held if one[0] - self._anchor <= self._max_gap]
            selected.append(self._take(near[-1] if near else self._held[0]))
        if not self._held or pts - self._anchor >= STEP * (self._held[-1][0] - self._anchor):
            self._held.append((pts, item))
        while len(self._held) > 1 and 2 * (self._held[1][0] - self._anchor) <= pts - self._anchor:
            self._held.popleft()
        self._last = pts, item
        return selected

    def finish(self) -> list[Item]:
        """End the last shot; return those of its frames that are still to be selected."""
        if self._last is None or self._last[0] == self._anchor:
            return []
        pts, item = self._last
        middle = [one for one in self._held if one[0] < pts]
        self._last = None
        if not middle:
            self._held.clear()
            return [item]
        nearest = min(middle, key=lambda one: abs(2 * one[0] - self._anchor - pts))
        self._held.clear()
        return [nearest[1], item]

    def _take(self, chosen: tuple[int, Item]) -> Item:
        self._anchor = chosen[0]
        while self._held and self._held[0][0] <= self._anchor:
            self._held.popleft()
        return chosen[1]
