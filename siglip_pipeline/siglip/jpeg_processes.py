"""Decode JPEGs in processes, which need no turn of this interpreter's lock.

Each process writes its pictures to memory that it shares with this one. The memory is a nameless
file, so nothing is left behind however either ends, and the size of /dev/shm does not matter.
"""

import contextlib
import json
import mmap
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Final

import numpy as np
import torch

from siglip_pipeline.siglip.jpeg_child import SHARED_BYTES, Answer
from siglip_pipeline.siglip.jpeg_decoders import ThreadDecoder, prepared
from siglip_pipeline.siglip.preprocess import Prepared, fitted
from siglip_pipeline.siglip.recipe import Recipe
from siglip_pipeline.text.in_words import counted

_REAP_SECONDS: Final = 5.0
_BOOT: Final = """
import json, sys
sys.path, connection, file = json.loads(sys.argv[1])
from siglip_pipeline.siglip.jpeg_child import main
main(connection, file)
"""


def can_share_memory() -> bool:
    """Return whether this system has nameless files in memory (Linux)."""
    return hasattr(os, "memfd_create")


class ProcessDecoder(ThreadDecoder):
    """Decode in processes; a thread per process hands it tasks and copies its pictures.

    When a process dies, its pictures are decoded again in a new one. A picture that ends two
    processes is reported as damaged.
    """

    def __init__(self, recipe: Recipe, *, processes: int, on_card: bool) -> None:
        super().__init__(recipe, threads=processes, on_card=on_card)
        self.name = counted(processes, "process", "processes")
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._closed = False
        self._children: list[_Child] = []
        try:
            for _ in range(processes):
                self._children.append(child := _Child(recipe))
                self._idle.put(child)
            for child in self._children:
                child.wait_until_ready()
        except (EOFError, OSError):
            self.close()
            raise

    def close(self) -> None:
        """End the threads and the processes."""
        self._closed = True
        for child in self._children:
            child.end()  # wakes the thread that waits for it
        super().close()
        for child in self._children:
            child.free()

    def decode(self, jpegs: Sequence[bytes]) -> list[Prepared | ValueError]:
        """Return each picture, or what is wrong with it."""
        try:
            return self._ask(jpegs)
        except (EOFError, OSError) as error:
            if self._closed:
                raise
            note = f"a decoding process ended ({error or 'killed'}), and was replaced"
            self.notes = tuple(dict.fromkeys((*self.notes, note)))
        if len(jpegs) > 1:  # one by one: at most one of them is to blame
            return [picture for jpeg in jpegs for picture in self.decode([jpeg])]
        try:
            return self._ask(jpegs)
        except (EOFError, OSError):
            if self._closed:
                raise
            return [ValueError("not a picture that can be read (its decoder ends)")]

    def _ask(self, jpegs: Sequence[bytes]) -> list[Prepared | ValueError]:
        child = self._idle.get()
        try:
            return self._pictures(child, jpegs, child.ask(jpegs))
        except (EOFError, OSError):
            child.restart()
            raise
        finally:
            self._idle.put(child)

    def _pictures(
        self, child: "_Child", jpegs: Sequence[bytes], answers: Sequence[Answer]
    ) -> list[Prepared | ValueError]:
        pictures: list[Prepared | ValueError] = []
        begin = 0
        for jpeg, answer in zip(jpegs, answers, strict=True):
            if answer is None:
                pictures.append(prepared(jpeg, self._recipe, on_card=self._on_card))
            elif isinstance(answer, str):
                pictures.append(ValueError(answer))
            else:
                pixels = child.pixels(begin, answer.height, answer.width)
                begin += pixels.numel()
                picture = fitted(
                    pixels, answer.full_size, self._recipe, device_resizes=self._on_card
                )
                # The next task overwrites what was not resized.
                if picture.pixels_HWC.data_ptr() == pixels.data_ptr():
                    picture = Prepared(pixels.clone(), picture.height, picture.width)
                pictures.append(picture)
        return pictures


class _Child:
    """A decoding process and the memory shared with it."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._lock = threading.Lock()
        self._ended = False
        with contextlib.ExitStack() as undo:
            self._file = os.memfd_create("siglip-pictures")
            undo.callback(os.close, self._file)
            os.ftruncate(self._file, SHARED_BYTES)
            self._shared = undo.enter_context(mmap.mmap(self._file, SHARED_BYTES))
            self._start()
            undo.pop_all()  # from here on, free() does it

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            self._connection = undo.enter_context(Connection(ours.detach()))
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, json.dumps([sys.path, theirs.fileno(), self._file])],
                pass_fds=[theirs.fileno(), self._file],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # only the engine gets Ctrl-C; it ends its processes
            )
            undo.callback(self._kill)
            theirs.close()  # so that sending fails once the process has ended
            self._connection.send(self._recipe)
            undo.pop_all()

    def ask(self, jpegs: Sequence[bytes]) -> list[Answer]:
        """Return what became of each JPEG.

        Raises:
            EOFError, OSError: the process is gone.
        """
        self._connection.send(list(jpegs))
        answers: list[Answer] = self._connection.recv()
        return answers

    def pixels(self, begin: int, height: int, width: int) -> torch.Tensor:
        """Return a picture in the shared memory, uint8 [H, W, 3]."""
        flat = np.frombuffer(self._shared, np.uint8, height * width * 3, begin)
        return torch.from_numpy(flat.reshape(height, width, 3))

    def wait_until_ready(self) -> None:
        """Wait until the process has imported what it needs.

        Raises:
            EOFError, OSError: it has ended.
        """
        self._connection.recv()

    def restart(self) -> None:
        """Replace the process, unless it was told to end.

        Raises:
            RuntimeError: no process can be started any more.
        """
        with self._lock:
            if self._ended:
                return
            self._kill()
            self._connection.close()
            try:
                self._start()
                self.wait_until_ready()
            except (EOFError, OSError) as error:
                raise RuntimeError("decoding processes cannot be started any more") from error

    def end(self) -> None:
        """End the process and start no other; whoever waits for its answer gets an error."""
        with self._lock:
            self._ended = True
            self._kill()

    def _kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits in the kernel
            self._process.wait(timeout=_REAP_SECONDS)

    def free(self) -> None:
        """Free what was shared with the process, which has ended."""
        self._connection.close()
        with contextlib.suppress(BufferError):  # a picture is still in use: freed with it
            self._shared.close()
        os.close(self._file)
