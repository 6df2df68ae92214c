"""SHA-256 of uploads, in watched child processes with a budget of time. No av here."""

from collections.abc import Generator, Iterable

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.child_jobs import HashJob, Limits
from siglip_pipeline.video.children import Child, JobError, wait_for_any
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.handing import Handed, hand


class TooLongError(VideoError):
    """An upload was not hashed within its time."""


def sha256_many(
    uploads_list: Iterable[Upload], uploads: UploadStore, *, options: DecodeOptions, workers: int
) -> Generator[tuple[Upload, str | VideoError], None, None]:
    """Hash uploads, several at once; each hash, in hexadecimal, is given as it is known.

    Args:
        uploads_list: taken one by one.
        uploads: where they lie.
        options: how large an upload may be, and how long hashing it may take.
        workers: uploads hashed at once, one process each.
    """
    waiting = iter(uploads_list)
    free: list[Child] = []
    busy: dict[Child, tuple[Upload, Handed]] = {}
    try:
        exhausted = False
        while busy or not exhausted:
            while len(busy) < workers and not exhausted:
                if (upload := next(waiting, None)) is None:
                    exhausted = True
                    continue
                try:
                    handed = hand(uploads, upload, options)
                except VideoError as error:
                    yield upload, error
                    continue
                child = free.pop() if free else Child()
                busy[child] = upload, handed
                job = HashJob(video=upload.path, fed_bytes=handed.fed_bytes)
                child.start(job, _limits(upload, options), [handed.descriptor])
            for child in wait_for_any(busy) if busy else []:
                upload, handed = busy.pop(child)
                handed.close()
                yield upload, _outcome(child, upload)
                if child.is_alive:
                    free.append(child)
    finally:
        for child in [*free, *busy]:
            child.end()
        for _, handed in busy.values():
            handed.close()


def _limits(upload: Upload, options: DecodeOptions) -> Limits:
    return Limits(
        stall_seconds=options.stall_seconds,
        total_seconds=options.hash_seconds(upload.size_bytes),
        memory_mib=options.memory_mib,
    )


def _outcome(child: Child, upload: Upload) -> str | VideoError:
    try:
        return str(child.value())
    except JobError as error:
        if error.kind == "late":
            return TooLongError(
                upload.path,
                f"hashing its {upload.size_bytes / 2**30:,.1f} GiB: {error.reason}; raise "
                "SIGLIP_HASH_SECONDS_PER_GIB if the storage really is so slow",
            )
        return VideoError(upload.path, error.reason)
