"""The main program of a decoding child: do jobs in a sandbox, and report progress and results."""

import codecs
import dataclasses
import importlib
import json
import os
import pickle
import pkgutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Final

import av
import av.error
from PIL import Image

import siglip_pipeline.video.cut
import siglip_pipeline.video.extraction
import siglip_pipeline.video.query_picture  # noqa: F401  jobs use them
from siglip_pipeline.errors import (
    PictureTooLargeError,
    QueryError,
    SiglipPipelineError,
    StorageFullError,
    UploadError,
    VideoError,
)
from siglip_pipeline.video.child_jobs import Job
from siglip_pipeline.video.memory import return_freed_memory
from siglip_pipeline.video.sandbox import enter_sandbox
from siglip_pipeline.video.wire import Wire

PROGRESS_SECONDS: Final = 0.25


def main(descriptor: int, *, parent: int, modules: Sequence[str] = ()) -> None:
    """Do jobs until the parent process ends.

    Args:
        descriptor: the socket to the parent.
        parent: the parent's process id.
        modules: more modules that jobs need, because nothing can be imported later.
    """
    return_freed_memory()
    _import_all(modules)
    wire = Wire(socket.socket(fileno=descriptor), takes_descriptors=True)
    sandbox = enter_sandbox()
    threading.Thread(target=_leave_with_parent, args=[parent], daemon=True).start()
    _say(wire, "ready", dataclasses.asdict(sandbox))
    while True:
        try:
            job: Job = pickle.loads(wire.receive())
        except (EOFError, OSError):
            return
        try:
            _say(wire, *_outcome(job, wire))
        finally:
            for descriptor in wire.descriptors:
                os.close(descriptor)
            wire.descriptors.clear()


def _import_all(modules: Sequence[str]) -> None:
    """Import modules that libraries import on first use, which the sandbox forbids."""
    Image.init()
    of_av = [found.name for found in pkgutil.walk_packages(av.__path__, "av.")]
    of_numpy = [f"numpy.{name}" for name in ("char", "fft", "linalg", "ma", "random", "rec")]
    for module in (*of_av, *of_numpy, *modules):
        if module not in ("av.__main__", "av.datasets"):
            importlib.import_module(module)
    for codec in ("ascii", "cp1252", "latin-1", "unicode-escape", "utf-8-sig", "utf-16", "utf-32"):
        codecs.lookup(codec)
    sys.path.clear()  # later imports fail with ImportError instead of EPERM


def _outcome(job: Job, wire: Wire) -> tuple[str, object]:
    """Do a job; return the kind of its outcome, and its value or reason."""
    try:
        return "done", job.perform(wire.descriptors, _Progress(wire))
    except VideoError as error:
        return "failed", error.reason
    except StorageFullError as error:  # concerns all videos
        return "full", str(error)
    except UploadError as error:  # the storage failed
        return "interrupted", str(error)
    except PictureTooLargeError as error:
        return "too large", str(error)
    except QueryError as error:
        return "refused", str(error)
    except SiglipPipelineError as error:
        return "failed", str(error)
    except av.error.FFmpegError as error:
        return "failed", f"FFmpeg cannot go on with it ({error}); the file is damaged"
    except MemoryError:
        return "failed", "decoding it ran out of memory"
    except Exception as error:  # a defect fails one video, and is logged
        traceback.print_exc()
        return "failed", f"unexpected {type(error).__name__}: {error}"


def _say(wire: Wire, kind: str, value: object) -> None:
    wire.send(json.dumps([kind, value], default=str).encode())


def _leave_with_parent(parent: int) -> None:
    """End this process when the parent has ended, even if a decoder hangs."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Progress:
    """Reports progress to the parent, at most a few times a second."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._last = time.monotonic()

    def __call__(self, step: int = 0) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            _say(self._wire, "progress", step)
