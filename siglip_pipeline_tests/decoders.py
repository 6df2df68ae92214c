"""Decoding children that tests hand on: to start one takes longer than to decode a short film."""

from typing import Final

from siglip_pipeline.video.children import Child

KEPT_MIB: Final = 512
"""A child that holds more is ended, as is one whose job failed in a way that ends it."""
MOST_KEPT: Final = 2

_kept: list[Child] = []


class KeptChild(Child):
    """Waits for the next batch, where others end: as it does for the next file of a batch."""

    def end(self) -> None:
        """Keep it if it can take another job; end it otherwise."""
        can_go_on = self.is_idle and self.is_alive and self.memory_mib() < KEPT_MIB
        if can_go_on and len(_kept) < MOST_KEPT:
            _kept.append(self)
        else:
            super().end()


def kept_child() -> Child:
    """Return a child that an earlier batch has left, or a new one."""
    while True:
        try:
            child = _kept.pop()
        except IndexError:
            return KeptChild()
        if child.is_alive:
            return child
        Child.end(child)


def end_kept_children() -> None:
    """End those that wait."""
    while _kept:
        Child.end(_kept.pop())
