"""The threads that run the model: one per GPU, several of few cores each on a CPU."""

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
"""More cores than this are shared out, several to a worker: each worker holds the activations of a
batch of its own."""


class Jobs(Protocol):
    """Where batches come from."""

    def __call__(self, *, wait: bool) -> Job | None:
        """The next batch, or None after the last one.

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
    """Who runs which model.

    On a GPU one thread keeps the device busy. On a CPU a batch on each core beats one batch on all
    cores: nothing is split, so nothing waits for the slowest part (decision 0034 has figures).

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
    """Run batches until there are no more."""
    if worker.cores is not None:
        torch.set_num_threads(worker.cores)  # of this thread alone
    if worker.model.torch_device.type == "cuda":
        _work_cuda(worker.model, sizes, jobs, deliver)
        return
    while (job := jobs(wait=True)) is not None:
        deliver(job, run_batch(worker.model, job.batch, sizes), worker.model)


def _work_cuda(model: SiglipModel, sizes: BatchSize, jobs: Jobs, deliver: Deliver) -> None:
    """With the next batch copied and launched while the last one computes."""
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
                pass  # nothing to launch ahead: finish what runs
            if job is not None:
                launched = _launch_copied(model, job, copies)
            if running is not None:
                deliver(running[0], finish(running[1], sizes), model)
                running = None
            if job is not None and launched is None:
                # No memory for it beside the one before: alone, in halves.
                deliver(job, run_halves(model, job.batch, sizes), model)
            elif job is not None and launched is not None:
                running = (job, launched)


def _launch_copied(model: SiglipModel, job: Job, copies: "torch.cuda.Stream") -> Launched | None:
    """Start a batch behind the one that runs; None if there is no memory for both."""
    computing = torch.cuda.current_stream()
    try:
        with torch.cuda.stream(copies):
            copied = job.batch.to(model.torch_device)
        computing.wait_stream(copies)
        for group in copied.groups:  # not to be reused before the model has read them
            for tensor in (group.pixels_NHWC, group.rows):
                if tensor is not None:
                    tensor.record_stream(computing)
        return launch(model, job.batch, copied)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None
