"""Share the cards of a machine among processes: each takes one, the least used.

A lease is a lock on a file, which the kernel takes back from a process that ends or is killed.
Programs that the process starts do not inherit it.
"""

import fcntl
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from siglip_pipeline.files.private_files import make_folders


class CardLease:
    """A card of this machine that this process uses until :meth:`release` or its end.

    Where every card is taken, one is shared: that of the fewest processes.

    Args:
        cards: a name for each card, the same in all processes: :func:`.device.card_names`.
        folder: of the locks; processes with another one do not know of each other.
    """

    def __init__(self, cards: Sequence[str], folder: Path) -> None:
        make_folders(folder)
        for others in count():
            for number, card in enumerate(cards):
                lock = os.open(folder / f"{card}.{others}", os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(lock)
                    continue
                self.card, self.others, self._lock = number, others, lock
                return

    def release(self) -> None:
        """Leave the card to others."""
        os.close(self._lock)
