"""Do work on many uploads in decoding children, several at once. Imports no av."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Protocol, TypeVar

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.video.children import Child, wait_for_any

Outcome = TypeVar("Outcome")
Outcome_co = TypeVar("Outcome_co", covariant=True)


class Task(Protocol[Outcome_co]):
    """Work on one upload, done by one job of a child."""

    def start(self, child: Child) -> None:
        """Give the job to the child."""

    def finish(self, child: Child) -> Outcome_co:
        """Return the outcome, after the child's job has ended."""

    def close(self) -> None:
        """Release what the task holds, whether it was finished or not."""


def run_in_children(
    uploads: Iterator[Upload],
    begin: Callable[[Upload], Task[Outcome]],
    *,
    children: int,
    memory_mib: int,
) -> Generator[tuple[Upload, Outcome | VideoError], None, None]:
    """Yield the outcome of each upload's task, in the order in which they end.

    Args:
        uploads: read one by one as children become free. It may give more after it has ended,
            until the last outcome was yielded.
        begin: makes the task of an upload; a VideoError that it raises is the outcome.
        children: children at work at once. They are reused.
        memory_mib: limit of a child's memory. A child that still holds half of it is replaced.
    """
    free: list[Child] = []
    busy: dict[Child, tuple[Upload, Task[Outcome]]] = {}
    try:
        while True:
            while len(busy) < children and (upload := next(uploads, None)) is not None:
                try:
                    task = begin(upload)
                except VideoError as error:
                    yield upload, error
                    continue
                child = free.pop() if free else Child()
                busy[child] = upload, task
                task.start(child)
            if not busy:
                return
            for child in wait_for_any(busy):
                upload, task = busy.pop(child)
                if child.is_alive and child.memory_mib() < memory_mib / 2:
                    free.append(child)
                else:
                    child.end()
                with contextlib.closing(task):
                    outcome = task.finish(child)
                yield upload, outcome
    finally:
        for child in [*free, *busy]:
            child.end()
        for _, task in busy.values():
            task.close()
