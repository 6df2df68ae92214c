"""Run the model in threads: one on a GPU, or several with a few cores each on a CPU."""

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from siglip_pipeline.siglip.device import is_out_of_memory
from siglip_pipeline.siglip.jpeg_decoders import Decoded
from siglip_pipeline.siglip.messages import Job
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.preprocess import ModelInputs
from siglip_pipeline.siglip.runner import BatchOutcome, BatchSize, run_halves, shrink
from siglip_pipeline.siglip.streams import Mark, Streams, streams_of

MOST_CPU_WORKERS = 8
"""With more cores, each worker gets several, as each holds the activations of its own batch."""


class Jobs(Protocol):
    """The source of batches."""

    def __call__(self, *, wait: bool) -> Job | None:
        """Return the next batch, or None after the last one.

        Raises:
            queue.Empty: ``wait`` is false and no batch is ready yet.
        """


Deliver = Callable[[Job, Decoded, BatchOutcome, SiglipModel], None]


@dataclass(frozen=True, slots=True)
class Worker:
    """A thread that runs a model."""

    model: SiglipModel
    cores: int | None
    """Threads that torch may use for one batch; None where the model is not on the CPU."""


def plan_workers(model: SiglipModel, cores: int) -> tuple[Worker, ...]:
    """Assign cores to workers; all share the model's weights.

    On a GPU one thread keeps the device busy. On a CPU one batch per core is faster than one batch
    on all cores, as nothing waits for the slowest core (decision 0034 has figures).

    Args:
        model: the model of the run.
        cores: CPU threads that torch may use.
    """
    if model.torch_device.type != "cpu":
        return (Worker(model, None),)
    count = min(cores, MOST_CPU_WORKERS)
    return (Worker(model, cores // count),) * count


def work(worker: Worker, sizes: BatchSize, jobs: Jobs, deliver: Deliver) -> None:
    """Run batches until none are left; on a card, prepare the next while one runs."""
    if worker.cores is not None:
        torch.set_num_threads(worker.cores)  # applies to this thread only
    model, streams = worker.model, streams_of(worker.model.torch_device)
    running: Launched | None = None
    last = False
    with streams.device():
        while not last:
            job: Job | None = None
            begun: Launched | _NoRoom | None = None
            try:
                job = jobs(wait=running is None)
                last = job is None
            except queue.Empty:
                pass  # no batch to launch yet: finish the running one
            if job is not None:
                begun = _launch(model, job, streams, sizes)
            if running is not None:
                deliver(running.job, running.decoded, running.wait(sizes), model)
                running = None
            if isinstance(begun, _NoRoom):
                deliver(begun.job, *_run_alone(model, begun, streams, sizes), model)
            elif begun is not None and not streams.ahead:
                deliver(begun.job, begun.decoded, begun.wait(sizes), model)
            else:
                running = begun


@dataclass(frozen=True, slots=True)
class Launched:
    """A batch that may still be running."""

    job: Job
    decoded: Decoded
    streams: Streams
    vectors_ND: torch.Tensor
    """On the host, once the last mark is passed."""
    inputs: ModelInputs
    marks: tuple[Mark, Mark, Mark]
    """Computation began; computation ended; the vectors are on the host."""

    def wait(self, sizes: BatchSize) -> BatchOutcome:
        """Return the result; pass its time to ``sizes``."""
        began, ended, arrived = self.marks
        arrived.synchronize()
        seconds = ended.seconds_since(began)
        sizes.measured(len(self.decoded.rows), seconds)
        vectors_ND = self.streams.kept(self.vectors_ND)
        return BatchOutcome(vectors_ND, seconds, self.inputs.patches, self.inputs.padding)


@dataclass(frozen=True, slots=True)
class _NoRoom:
    """A batch that did not fit in the memory of the device, perhaps beside the one before."""

    job: Job
    decoded: Decoded | None
    """None if even its pictures did not fit."""
    reason: Exception


def _launch(model: SiglipModel, job: Job, streams: Streams, sizes: BatchSize) -> Launched | _NoRoom:
    """Start a batch behind the running one."""
    decoded: Decoded | None = None
    try:
        with streams.side():
            decoded = job.decoding()
            inputs = ModelInputs({}, 0, 0)
            if decoded.batch is not None:
                inputs = model.inputs(decoded.batch.to(model.torch_device))
        streams.hand_over(inputs.arguments.values())
        began = streams.mark()
        vectors_ND = torch.empty((0, model.spec.dim))
        if decoded.batch is not None:
            capacity = min(job.capacity, sizes.current)
            vectors_ND = model.forward(model, inputs, capacity=capacity)
        ended = streams.mark()
        on_host = streams.to_host(vectors_ND)
        return Launched(job, decoded, streams, on_host, inputs, (began, ended, streams.mark()))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        streams.hand_over(())  # pictures decoded on the side may be read by the model as they are
        return _NoRoom(job, decoded, error.with_traceback(None))


def _run_alone(
    model: SiglipModel, refused: _NoRoom, streams: Streams, sizes: BatchSize
) -> tuple[Decoded, BatchOutcome]:
    """Run a batch while no other runs; in halves if it still does not fit."""
    shrink(model, len(refused.job), sizes)
    again = _launch(model, refused.job, streams, sizes)
    if isinstance(again, Launched):
        return again.decoded, again.wait(sizes)
    if again.decoded is None or again.decoded.batch is None:
        raise again.reason
    return again.decoded, run_halves(model, again.decoded.batch, sizes, again.reason)
