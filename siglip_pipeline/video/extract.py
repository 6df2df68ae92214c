"""Sampled frames of uploads into the frame store, each video decoded in a watched child process.

A decoder can hang, crash or fill the memory on a damaged file. Here that costs the one video and
the child that decoded it; the batch goes on with a fresh child.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Sized
from pathlib import Path
from typing import Final

from siglip_pipeline.errors import UploadError, UploadNotFoundError, VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads import UploadStore
from siglip_pipeline.video.children import Child, wait_for_any
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.video.jobs import DecodeOptions, ExtractJob, FrameReport
from siglip_pipeline.video.sampling import Sampling

__all__ = ["DecodeOptions", "FrameReport", "extract_frames", "extract_many"]

MAX_TRIES: Final = 3
"""A file that was replaced while it was decoded is decoded again, up to so many times in all."""

MAX_THREADS: Final = 8
"""More threads for one video decode it hardly faster, and each holds frames of its own."""


def extract_frames(
    upload: Upload,
    uploads: UploadStore,
    frame_store: FrameStore,
    *,
    sampling: Sampling | str,
    options: DecodeOptions | None = None,
) -> FrameReport:
    """Decode one upload and store its sampled frames, replacing those stored before.

    Raises:
        VideoError: the upload cannot be decoded, with the reason.
        FrameStoreError: the frames cannot be stored.
    """
    results = extract_many(
        [upload], uploads, frame_store, sampling=sampling, options=options, workers=1
    )
    with contextlib.closing(results):
        for _, result in results:
            if isinstance(result, VideoError):
                raise result
            return result
    raise AssertionError("extract_many gave nothing for its one upload")


def extract_many(
    uploads_list: Iterable[Upload],
    uploads: UploadStore,
    frame_store: FrameStore,
    *,
    sampling: Sampling | str,
    options: DecodeOptions | None = None,
    workers: int = 0,
) -> Generator[tuple[Upload, FrameReport | VideoError], None, None]:
    """Decode many uploads in parallel; each upload's outcome is given as it is known.

    A file that is replaced meanwhile is decoded again: frames of two files are never mixed.

    Args:
        uploads_list: taken one by one as children become free.
        uploads: where they lie.
        frame_store: where frames go.
        sampling: which frames to take.
        options: how to decode.
        workers: videos decoded at once, one process each; 0 for one per CPU core. Cores that are
            left over, as with a single video, become decoder threads.

    Raises:
        FrameStoreError: frames cannot be stored; that concerns all videos, so the batch ends.
    """
    policy = Sampling.parse(sampling) if isinstance(sampling, str) else sampling
    options = options or DecodeOptions()
    limit = workers or available_cpus()
    if isinstance(uploads_list, Sized):
        limit = max(1, min(limit, len(uploads_list)))
    if options.threads == 0:
        threads = min(MAX_THREADS, max(1, available_cpus() // limit))
        options = dataclasses.replace(options, threads=threads)
    waiting = iter(uploads_list)
    tries: dict[str, int] = {}
    free: list[Child] = []
    busy: dict[Child, _Task] = {}
    try:
        exhausted = False
        while True:
            while not exhausted and len(busy) < limit:
                upload = next(waiting, None)
                if upload is None:
                    exhausted = True
                    break
                try:
                    task = _Task(upload, uploads, frame_store, policy, options)
                except VideoError as error:
                    yield upload, error
                    continue
                child = free.pop() if free else Child()
                busy[child] = task
                child.start(task.job, options)
            if not busy:
                return
            for child in wait_for_any(busy):
                task = busy.pop(child)
                if child.is_alive and child.memory_mib() < options.memory_mib / 2:
                    free.append(child)
                else:  # the next video must not pay for what this one left behind
                    child.end()
                outcome = task.finish(child)
                if isinstance(outcome, Upload):
                    tries[outcome.path] = tries.get(outcome.path, 1) + 1
                    if tries[outcome.path] <= MAX_TRIES:
                        waiting, exhausted = itertools.chain([outcome], waiting), False
                        continue
                    outcome = VideoError(
                        outcome.path,
                        f"it was replaced {MAX_TRIES} times while it was decoded; it is taken up "
                        "again once it stays as it is",
                    )
                yield task.upload, outcome
    finally:
        for child in [*free, *busy]:
            child.end()
        for task in busy.values():
            task.clean_up()


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Task:
    """One upload on its way through a child."""

    def __init__(
        self,
        upload: Upload,
        uploads: UploadStore,
        frame_store: FrameStore,
        sampling: Sampling,
        options: DecodeOptions,
    ) -> None:
        self.upload = upload
        self._uploads = uploads
        self._frame_store = frame_store
        self._draft = frame_store.new_draft()
        self._spool: Path | None = None
        try:
            path = uploads.local_path(upload.path)
            if path is None and not uploads.opens_in_other_processes:
                path = self._spool = _spool(upload, uploads)
        except UploadError as error:
            raise VideoError(upload.path, str(error)) from error
        self.job = ExtractJob(
            video=upload.path,
            path=path,
            uploads=None if path is not None else uploads,
            draft=self._draft,
            sampling=sampling,
            options=options,
            source_fingerprint=upload.fingerprint,
        )

    def finish(self, child: Child) -> FrameReport | VideoError | Upload:
        """Put the frames in place, or drop what was written.

        Returns:
            The upload as it is now, where that is not what the child was given to read.

        Raises:
            FrameStoreError: the frames cannot be stored.
        """
        try:
            result = child.result()
            try:
                now = self._uploads.get(self.upload.path)
            except UploadNotFoundError:
                found = f" ({result.reason})" if isinstance(result, VideoError) else ""
                return VideoError(self.upload.path, f"it was deleted while it was decoded{found}")
            if now.fingerprint != self.upload.fingerprint:
                return now
            if isinstance(result, VideoError):
                return result
            self._frame_store.publish(self.upload.path, self._draft)
            return result
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        """Remove the temporary files of this upload."""
        self._draft.unlink(missing_ok=True)
        if self._spool is not None:
            self._spool.unlink(missing_ok=True)


def _spool(upload: Upload, uploads: UploadStore) -> Path:
    """A local copy, for storage that only this process can read."""
    with (
        uploads.open(upload.path) as source,
        tempfile.NamedTemporaryFile(prefix="siglip-upload-", delete=False) as copy,
    ):
        shutil.copyfileobj(source, copy)
    return Path(copy.name)
