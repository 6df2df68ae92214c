"""Embed the texts of concurrent requests in one batch."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from siglip_pipeline.records import FloatArray
from siglip_pipeline.search import QueryEmbedder
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.store.models import ModelRow

MAX_BATCH = 64

_Key = tuple[str, str]


class BatchingEmbedder(QueryEmbedder):
    """Batches the texts that arrive during a forward pass; no text waits for others to arrive.

    Thread-safe. :meth:`QueryEmbedder.texts` caches the vectors.
    """

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options)
        self._queue_lock = threading.Lock()
        self._waiting: dict[_Key, tuple[ModelRow, Future[FloatArray]]] = {}
        self._running: dict[_Key, Future[FloatArray]] = {}
        # One thread: a second pass at the same time would only share the device with the first.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="text-encoder")

    def embed_texts(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        """Return unit vectors [N, D]; an error of a batch is raised for each of its texts."""
        with self._queue_lock:
            before = len(self._waiting)
            futures = [self._future(model, text) for text in texts]
            fresh = len(self._waiting) - before
        # Every text requests a pass; the first pass takes all texts, the others find none.
        for _ in range(fresh):
            self._worker.submit(self._pass)
        return np.stack([future.result() for future in futures])

    def forward(self, model: ModelRow, texts: Sequence[str]) -> FloatArray:
        """Run one forward pass over a batch, [N, D]."""
        return super().embed_texts(model, texts)

    def waiting(self) -> int:
        """Return how many texts wait for the next forward pass."""
        with self._queue_lock:
            return len(self._waiting)

    def close(self) -> None:
        """Embed the waiting texts, then end the worker."""
        self._worker.shutdown()

    def _future(self, model: ModelRow, text: str) -> "Future[FloatArray]":
        key = (model.key, text)
        if key in self._running:
            return self._running[key]
        if key in self._waiting:
            return self._waiting[key][1]
        future: Future[FloatArray] = Future()
        self._waiting[key] = (model, future)
        return future

    def _pass(self) -> None:
        with self._queue_lock:
            if not self._waiting:
                return
            model, _ = next(iter(self._waiting.values()))
            keys = [key for key in self._waiting if key[0] == model.key][:MAX_BATCH]
            batch = {key: self._waiting.pop(key)[1] for key in keys}
            self._running = batch
        try:
            vectors_ND = self.forward(model, [text for _, text in batch])
        except BaseException as error:
            for future in batch.values():
                future.set_exception(error)
        else:
            for future, vector_D in zip(batch.values(), vectors_ND, strict=True):
                future.set_result(vector_D)
        finally:
            with self._queue_lock:
                self._running = {}
