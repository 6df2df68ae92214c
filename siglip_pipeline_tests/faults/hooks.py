"""What a command of the fault suite does to itself before it starts; see `zygote.py`."""

import os
import resource
from typing import Any

FILE_LIMIT_BYTES = 48 * 1024
FRAMES_THAT_FIT = 3


def limit_file_size() -> None:
    """No file may grow beyond this, the frame files of decoding children included."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES))


def lossy_disk() -> None:
    """A Postgres that flushes to the same disk as the command that starts it."""
    from siglip_pipeline.embedded_postgres import cluster

    plain = cluster.server_environment()
    disk = {name: os.environ[name] for name in ("LD_PRELOAD", "FAULT_DISK_OF", "FAULT_DISK")}
    cluster.server_environment = lambda: plain | disk


def little_device_memory() -> None:
    """A device that holds three frames at a time, as CUDA says it."""
    _limit_memory(FRAMES_THAT_FIT)


def no_device_memory() -> None:
    """A device that does not even hold one."""
    _limit_memory(0)


def _limit_memory(frames: int) -> None:
    import torch

    from siglip_pipeline.siglip.model import SiglipModel

    real = SiglipModel.encode_images

    def encode_images(self: SiglipModel, inputs: Any) -> Any:
        wanted = len(inputs.arguments["pixel_values"])
        if wanted > frames:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {wanted} frames")
        return real(self, inputs)

    SiglipModel.encode_images = encode_images  # type: ignore[method-assign]
