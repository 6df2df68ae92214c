"""Make clips that browsers play on demand, and keep them within a size limit. Imports no av."""

import contextlib
import hashlib
import logging
import math
import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from siglip_pipeline.errors import VideoError
from siglip_pipeline.files.size_limit import remove_oldest
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.clips import cut_clip
from siglip_pipeline.video.decode_options import DecodeOptions

if TYPE_CHECKING:
    from siglip_pipeline.settings import Settings

logger = logging.getLogger(__name__)

_VERSION: Final = "2"
"""Part of the cache key: raise it when clips are made differently."""
_FAILURES_KEPT: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipOptions:
    """How clips are made and kept."""

    folder: Path
    """Created on first use."""
    max_bytes: int
    """Least recently watched clips are removed beyond this."""
    longest_side: int = 1280
    """Pictures are shrunk to this, in pixels."""
    at_once: int = 1
    """Clips made at once, each in one process; beside them, one whole video."""
    waiting: int = 8
    """Clips that wait for their turn, and as many whole videos."""
    decode: DecodeOptions = field(default_factory=DecodeOptions)

    @classmethod
    def from_settings(cls, settings: "Settings") -> "ClipOptions":
        """Return the options that the environment asks for."""
        return cls(
            folder=settings.home / "clips",
            max_bytes=int(settings.clip_cache_gib * 2**30),
            longest_side=settings.clip_longest_side,
            at_once=settings.clips_at_once,
            decode=DecodeOptions.from_settings(settings),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a video, in seconds, half-open; without an end, all of it."""

    start_seconds: float = 0.0
    end_seconds: float = math.inf

    @property
    def is_whole(self) -> bool:
        """Return whether this is all of a video."""
        return self == Span()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptClip:
    """A clip that is there."""

    file: BinaryIO
    """Open; the caller closes it."""
    lost_sound: bool
    """Whether it has no sound because that of the upload cannot be decoded."""


class Making:
    """A clip in progress; threads may share it."""

    def __init__(self) -> None:
        self.done: Future[None] = Future()
        """Completes with the clip; raises :class:`.VideoError` for a video that has none."""
        self.share = 0.0
        """How much is done, 0 to 1."""


class _StoppedError(Exception):
    """The cache was closed."""


class ClipCache:
    """Makes clips in watched child processes and keeps them. Thread-safe.

    Several processes may share the folder. Clips are H.264 and AAC in MP4, upright.

    Args:
        uploads: where videos are.
        options: how clips are made and kept.
    """

    def __init__(self, uploads: UploadStore, options: ClipOptions) -> None:
        self._uploads = uploads
        self._options = options
        self._lock = threading.Lock()
        self._closed = False
        self._makings: OrderedDict[str, Making] = OrderedDict()
        """Those in progress, and the last ones that failed."""
        self._parts = ThreadPoolExecutor(options.at_once, thread_name_prefix="clips")
        self._wholes = ThreadPoolExecutor(1, thread_name_prefix="whole-clips")
        self._queued = {self._parts: 0, self._wholes: 0}

    def open(self, upload: Upload, span: Span) -> KeptClip | None:
        """Return a clip that is kept, open; None if it is not."""
        path = self._path(upload, span)
        for kept in (path, _silent(path)):
            with contextlib.suppress(OSError):
                file = kept.open("rb")
                with contextlib.suppress(OSError):
                    os.utime(kept)
                return KeptClip(file=file, lost_sound=kept != path)
        return None

    def making(self, upload: Upload, span: Span) -> Making | None:
        """Return the clip in progress, or the last attempt that failed; None if there is none."""
        with self._lock:
            return self._makings.get(self._path(upload, span).name)

    def make(self, upload: Upload, span: Span, *, duration_seconds: float) -> Making | None:
        """Begin to make a clip, or join its making; None if too many wait already.

        Args:
            upload: the video; another version of it has other clips.
            span: which part of it.
            duration_seconds: of the whole video.
        """
        path = self._path(upload, span)
        executor = self._wholes if span.is_whole else self._parts
        most = self._options.waiting + (1 if span.is_whole else self._options.at_once)
        with self._lock:
            making = self._makings.get(path.name)
            if making is not None and not making.done.done():
                return making
            if self._closed or self._queued[executor] >= most:
                return None
            self._queued[executor] += 1
            making = self._makings[path.name] = Making()
            self._makings.move_to_end(path.name)
        end_seconds = min(span.end_seconds, duration_seconds)
        executor.submit(self._make, executor, making, upload, span.start_seconds, end_seconds, path)
        return making

    def close(self) -> None:
        """End what is being made."""
        self._closed = True
        for executor in self._queued:
            executor.shutdown(wait=False, cancel_futures=True)

    def _make(
        self,
        executor: ThreadPoolExecutor,
        making: Making,
        upload: Upload,
        start_seconds: float,
        end_seconds: float,
        path: Path,
    ) -> None:
        def note(permille: int) -> None:
            if self._closed:
                raise _StoppedError
            making.share = permille / 1000

        error: Exception | None = None
        kept = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = cut_clip(
                self._uploads,
                upload.path,
                start_seconds,
                end_seconds,
                path,
                longest_side=self._options.longest_side,
                max_bytes=self._options.max_bytes,
                options=self._options.decode,
                on_progress=note,
                polite=True,
            )
            if made.silent_because is not None:
                logger.warning("%s: a clip is without sound: %s", upload.path, made.silent_because)
                kept = path.replace(_silent(path))
            remove_oldest(path.parent, "*.mp4", max_bytes=self._options.max_bytes, kept=kept)
        except Exception as caught:
            error = caught
            if not isinstance(caught, VideoError | _StoppedError):
                logger.exception("%s: no clip can be made", upload.path)
        self._finish(executor, path, making, error)

    def _finish(
        self, executor: ThreadPoolExecutor, path: Path, making: Making, error: Exception | None
    ) -> None:
        with self._lock:
            self._queued[executor] -= 1
            if error is None:
                del self._makings[path.name]
            elif len(self._makings) > _FAILURES_KEPT:
                self._makings.popitem(last=False)
        if error is None:
            making.share = 1.0
            making.done.set_result(None)
        else:
            making.done.set_exception(error)

    def _path(self, upload: Upload, span: Span) -> Path:
        parts = (
            _VERSION,
            upload.path,
            upload.fingerprint,
            f"{span.start_seconds:.3f}",
            f"{span.end_seconds:.3f}",
            str(self._options.longest_side),
        )
        name = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:40]
        return self._options.folder / f"{name}.mp4"


def _silent(path: Path) -> Path:
    """Return the name of a clip whose sound could not be decoded."""
    return path.with_name(f"{path.stem}.silent.mp4")
