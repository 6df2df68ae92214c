"""Decode query pictures in sandboxed children. Parents import this, so it imports no av."""

import os
import tempfile
import threading
from io import BufferedRandom
from typing import Final

import numpy as np

from siglip_pipeline.errors import PictureTimeoutError, PictureTooLargeError, QueryError
from siglip_pipeline.records import RgbArray
from siglip_pipeline.video.child_jobs import Limits, PictureJob
from siglip_pipeline.video.children import Child, JobError
from siglip_pipeline.video.picture_formats import picture_format

MAX_PIXELS: Final = 16_384 * 8_704
"""The limit of frames of videos."""

BYTES_PER_PIXEL: Final = 24
"""Memory of the child per pixel: sixteen-bit samples, transparency, and a copy for rotation."""
BASE_MIB: Final = 512


class PictureDecoder:
    """Decodes pictures in children, which are reused. Safe to share among threads.

    Args:
        children: pictures decoded at once; a child starts when it is first needed.
    """

    def __init__(self, children: int = 2) -> None:
        self._free = threading.Semaphore(children)
        self._lock = threading.Lock()
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._closed = False

    def decode(
        self,
        data: bytes,
        *,
        max_pixels: float = MAX_PIXELS,
        seconds: float = 5.0,
        name: str | None = None,
    ) -> RgbArray:
        """Return a picture as upright RGB, uint8 [H, W, 3].

        Args:
            data: an encoded picture.
            max_pixels: a picture with more pixels, according to its header, is refused.
            seconds: time limit of the decoding, and of waiting for a free child.
            name: name of the picture in messages.

        Raises:
            PictureTooLargeError: it has more pixels.
            PictureTimeoutError: it took longer, or no child was free in that time.
            QueryError: it cannot be read as a picture.
        """
        name = name or f"the file ({len(data):,} bytes)"
        job = PictureJob(name=name, format=picture_format(data, name), max_pixels=max_pixels)
        if not self._free.acquire(timeout=seconds):
            raise PictureTimeoutError(
                f"no decoder was free for {seconds:g} s: too many pictures are being decoded; try "
                "again"
            )
        try:
            child = self._take()
            try:
                return _decode(child, job, data, seconds)
            finally:
                self._give_back(child)
        finally:
            self._free.release()

    def close(self) -> None:
        """End all children; pictures that are being decoded fail."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for child in self._busy:
                child.kill()
        for child in idle:
            child.end()

    def __enter__(self) -> "PictureDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> Child:
        with self._lock:
            if self._closed:
                raise QueryError("no picture is read any more: the decoder is closed")
            while self._idle:
                child = self._idle.pop()
                if child.is_alive:
                    break
                child.end()
            else:
                child = Child()
            self._busy.add(child)
        return child

    def _give_back(self, child: Child) -> None:
        with self._lock:
            self._busy.discard(child)
            if child.is_alive and child.is_idle and not self._closed:
                self._idle.append(child)
                return
        child.end()


def _decode(child: Child, job: PictureJob, data: bytes, seconds: float) -> RgbArray:
    limits = Limits(
        total_seconds=seconds,
        stall_seconds=seconds,
        memory_mib=BASE_MIB + int(job.max_pixels * BYTES_PER_PIXEL / 2**20),
        file_bytes=int(job.max_pixels * 3),
    )
    with _memory_file("picture") as picture, _memory_file("pixels") as pixels:
        picture.write(data)
        picture.flush()
        try:
            height, width = child.run(job, limits, [picture.fileno(), pixels.fileno()])
            shape = int(height), int(width), 3
            size_bytes = pixels.seek(0, 2)
            if min(shape) < 1 or size_bytes != shape[0] * shape[1] * 3:
                raise ValueError(f"{size_bytes} bytes for {shape}")
            pixels_HWC = np.empty(shape, np.uint8)
            pixels.seek(0)
            # Copy the pixels: the child could still write to the file.
            if pixels.readinto(pixels_HWC.data) != size_bytes:
                raise ValueError("the file has become shorter")
        except JobError as error:
            raise _query_error(error, seconds) from error
        except (TypeError, ValueError, ArithmeticError) as error:
            child.end()
            raise QueryError("the picture is damaged and cannot be read") from error
    return pixels_HWC


def _query_error(error: JobError, seconds: float) -> QueryError:
    if error.kind == "late":
        return PictureTimeoutError(
            f"decoding the picture took longer than {seconds:g} s and was ended; send a smaller "
            "one, or save it again"
        )
    if error.kind == "too large":
        return PictureTooLargeError(error.reason)
    if error.kind == "refused":
        return QueryError(error.reason)
    return QueryError(f"the picture is damaged and cannot be read: {error.reason}")


def _memory_file(name: str) -> BufferedRandom:
    """Open a new file without a name, in memory if the system supports it."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create(f"siglip-{name}"), "w+b")
    return tempfile.TemporaryFile()
