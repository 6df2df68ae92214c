"""Run the model in threads: one per GPU, or several with a few cores each on a CPU."""

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from siglip_pipeline.siglip.device import is_out_of_memory
from siglip_pipeline.siglip.messages import Job
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.siglip.runner import (
    BatchOutcome,
    BatchSize,
    Launched,
    finish,
    launch,
    run_batch,
    run_halves,
)

MOST_CPU_WORKERS = 8
"""With more cores, each worker gets several, as each holds the activations of its own batch."""


class Jobs(Protocol):
    """The source of batches."""

    def __call__(self, *, wait: bool) -> Job | None:
        """Return the next batch, or None after the last one.

        Raises:
            queue.Empty: ``wait`` is false and no batch is ready yet.
        """


Deliver = Callable[[Job, BatchOutcome, SiglipModel], None]


@dataclass(frozen=True, slots=True)
class Worker:
    """A thread that runs a model."""

    model: SiglipModel
    cores: int | None
    """Threads that torch may use for one batch; None where the model is not on the CPU."""


def plan_workers(models: Sequence[SiglipModel], cores: int) -> tuple[Worker, ...]:
    """Assign models and cores to workers.

    On a GPU one thread keeps the device busy. On a CPU one batch per core is faster than one batch
    on all cores, as nothing waits for the slowest core (decision 0034 has figures).

    Args:
        models: the models of the run; workers on a CPU share one model's weights.
        cores: CPU threads that torch may use.
    """
    on_cpu = sum(model.torch_device.type == "cpu" for model in models)
    share = max(1, cores // max(1, on_cpu))
    workers: list[Worker] = []
    for model in models:
        if model.torch_device.type == "cpu":
            count = min(share, MOST_CPU_WORKERS)
            workers += [Worker(model, share // count)] * count
        else:
            workers.append(Worker(model, None))
    return tuple(workers)


def work(worker: Worker, sizes: BatchSize, jobs: Jobs, deliver: Deliver) -> None:
    """Run batches until none are left."""
    if worker.cores is not None:
        torch.set_num_threads(worker.cores)  # applies to this thread only
    if worker.model.torch_device.type == "cuda":
        _work_cuda(worker.model, sizes, jobs, deliver)
        return
    while (job := jobs(wait=True)) is not None:
        deliver(job, run_batch(worker.model, job.batch, sizes), worker.model)


def _work_cuda(model: SiglipModel, sizes: BatchSize, jobs: Jobs, deliver: Deliver) -> None:
    """Run batches on a GPU; copy and launch the next while the last one computes."""
    copies = torch.cuda.Stream(model.torch_device)  # type: ignore[no-untyped-call]
    running: tuple[Job, Launched] | None = None
    last = False
    with torch.cuda.device(model.torch_device):
        while not last:
            job: Job | None = None
            launched: Launched | None = None
            try:
                job = jobs(wait=running is None)
                last = job is None
            except queue.Empty:
                pass  # no batch to launch yet: finish the running one
            if job is not None:
                launched = _launch_copied(model, job, copies)
            if running is not None:
                deliver(running[0], finish(running[1], sizes), model)
                running = None
            if job is not None and launched is None:
                # It did not fit in memory beside the one before: run it alone, in halves.
                deliver(job, run_halves(model, job.batch, sizes), model)
            elif job is not None and launched is not None:
                running = (job, launched)


def _launch_copied(model: SiglipModel, job: Job, copies: "torch.cuda.Stream") -> Launched | None:
    """Start a batch behind the running one; return None if both do not fit in memory."""
    computing = torch.cuda.current_stream()
    try:
        with torch.cuda.stream(copies):
            copied = job.batch.to(model.torch_device)
        computing.wait_stream(copies)
        for group in copied.groups:  # keep their memory until the model has read them
            for tensor in (group.pixels_NHWC, group.rows):
                if tensor is not None:
                    tensor.record_stream(computing)
        return launch(model, job.batch, copied)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None
