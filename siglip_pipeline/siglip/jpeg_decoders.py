"""Decode the JPEGs of batches ahead of the model: in threads, in processes, or on the card.

An engine sees a :class:`PictureDecoder`. Which one is used is part of its report.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from siglip_pipeline.siglip.preprocess import ImageBatch, Prepared, assemble, prepare
from siglip_pipeline.siglip.recipe import Recipe
from siglip_pipeline.text.in_words import counted

AT_ONCE: Final = 8
"""JPEGs per task of a thread: few enough to spread, enough to amortise the overhead."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The decoded pictures of a batch."""

    rows: list[int]
    """Positions of the pictures that could be decoded."""
    batch: ImageBatch | None
    """Those pictures, on the host or the device; None if there are none."""
    errors: dict[int, str]
    """What is wrong with the others, by position."""

    @classmethod
    def of(cls, pictures: Sequence[Prepared | ValueError], *, pinned: bool) -> "Decoded":
        """Stack what could be decoded."""
        good = {i: p for i, p in enumerate(pictures) if isinstance(p, Prepared)}
        errors = {i: str(p) for i, p in enumerate(pictures) if isinstance(p, ValueError)}
        batch = assemble(list(good.values()), pinned=pinned) if good else None
        return cls(list(good), batch, errors)


Decoding = Callable[[], Decoded]
"""Waits for the pictures of a batch. Called in the thread that runs the model; again if that ran
out of memory."""

Task = Future[list[Prepared | ValueError]]


class PictureDecoder(Protocol):
    """Decodes batches in the order in which they begin."""

    @property
    def name(self) -> str:
        """Return what decodes, for reports."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what went wrong with it."""

    def begin(self, jpegs: Sequence[bytes]) -> Decoding:
        """Begin to decode a batch; return without waiting for it."""

    def close(self) -> None:
        """End all threads and processes; pictures that are not decoded yet are dropped."""


class ThreadDecoder:
    """Decode in threads of this process.

    Args:
        recipe: of the model.
        threads: pictures decoded at once.
        on_card: whether a GPU shrinks the pictures and copies them from page-locked memory.
    """

    def __init__(self, recipe: Recipe, *, threads: int, on_card: bool) -> None:
        self.name = counted(threads, "thread")
        self.notes: tuple[str, ...] = ()
        self._recipe = recipe
        self._on_card = on_card
        # One torch thread per picture: splitting so little work makes decoding threads wait.
        self._pool = ThreadPoolExecutor(
            threads,
            thread_name_prefix="siglip-decode",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )

    def begin(self, jpegs: Sequence[bytes]) -> Decoding:
        """Begin to decode a batch."""
        tasks = self.start(jpegs)
        # The pool takes tasks in turn: when this one runs, those before it run or are done.
        return self._pool.submit(lambda: Decoded.of(results(tasks), pinned=self._on_card)).result

    def start(self, jpegs: Sequence[bytes]) -> list[Task]:
        """Begin to decode pictures; return tasks of some each, in order."""
        return [
            self._pool.submit(self.decode, jpegs[i : i + AT_ONCE])
            for i in range(0, len(jpegs), AT_ONCE)
        ]

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def decode(self, jpegs: Sequence[bytes]) -> list[Prepared | ValueError]:
        """Return each picture, or what is wrong with it."""
        return [prepared(jpeg, self._recipe, on_card=self._on_card) for jpeg in jpegs]


def results(tasks: Sequence[Task]) -> list[Prepared | ValueError]:
    """Wait for tasks; return their pictures."""
    return [picture for task in tasks for picture in task.result()]


def prepared(jpeg: bytes, recipe: Recipe, *, on_card: bool) -> Prepared | ValueError:
    """Return a picture decoded on the host, or what is wrong with it."""
    try:
        return prepare(jpeg, recipe, device_resizes=on_card)
    except ValueError as error:
        return error
