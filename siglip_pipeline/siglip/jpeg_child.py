"""A process that decodes JPEGs into memory shared with the engine. Imports no torch.

Started by :mod:`.jpeg_processes`; ends when the engine closes the connection or is gone.
"""

import mmap
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

import numpy as np

from siglip_pipeline.siglip.jpeg_decoding import decode
from siglip_pipeline.siglip.recipe import Recipe

SHARED_BYTES: Final = 1 << 28
"""Address space for the pictures of one task; memory is taken only for what is written."""


READY: Final = "ready"
"""Sent once, when all is imported."""


class Written(NamedTuple):
    """A decoded picture in the shared memory, one after the other."""

    height: int
    width: int
    full_size: tuple[int, int]
    """Height and width of the JPEG."""


Answer = Written | str | None
"""A picture, what is wrong with it, or None where it does not fit in the shared memory."""


def main(connection: int, file: int) -> None:
    """Answer tasks until the connection ends.

    Args:
        connection: descriptor of a socket to the engine.
        file: descriptor of the shared memory.
    """
    with Connection(connection) as engine:
        shared = mmap.mmap(file, SHARED_BYTES)
        recipe: Recipe = engine.recv()
        engine.send(READY)
        while True:
            try:
                jpegs: list[bytes] = engine.recv()
                engine.send(_write_pictures(jpegs, recipe, shared))
            except (EOFError, ConnectionError):
                return


def _write_pictures(jpegs: Sequence[bytes], recipe: Recipe, shared: mmap.mmap) -> list[Answer]:
    """Decode JPEGs into ``shared``, one after the other; return what became of each."""
    answers: list[Answer] = []
    begin = 0
    for jpeg in jpegs:
        try:
            pixels_HWC, full_size = decode(jpeg, recipe)
        except ValueError as error:
            answers.append(str(error))
            continue
        if begin + pixels_HWC.nbytes > len(shared):
            answers.append(None)
            continue
        space = np.frombuffer(shared, np.uint8, pixels_HWC.size, begin)
        space.reshape(pixels_HWC.shape)[:] = pixels_HWC
        begin += pixels_HWC.nbytes
        height, width, _ = pixels_HWC.shape
        answers.append(Written(height, width, full_size))
    return answers
