"""Detect the device and number format for a model."""

import platform
from pathlib import Path

import torch

from siglip_pipeline.errors import DeviceUnavailableError
from siglip_pipeline.siglip.model_options import DType

# Of all CPU features these two have bfloat16 products in hardware; without them it is emulated
# and slower than float32. Measured on AVX512-BF16: 2.6 times float32.
_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")


def choose_device(wanted: str) -> str:
    """Choose the best device for ``auto``, or check that a named device exists.

    Returns:
        ``cuda:N``, ``mps`` or ``cpu``.

    Raises:
        DeviceUnavailableError: the named device is absent, or the name is not valid.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted == "cpu":
        return "cpu"
    if wanted == "mps":
        if not torch.backends.mps.is_available():
            raise _absent(wanted)
        return "mps"
    kind, _, number = wanted.partition(":")
    if kind != "cuda" or not (number.isdecimal() or wanted == "cuda"):
        raise DeviceUnavailableError(
            f"SIGLIP_DEVICE={wanted!r} is not a device; allowed are auto, cuda, cuda:N, mps and cpu"
        )
    index = int(number or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise _absent(wanted)
    return f"cuda:{index}"


def _absent(wanted: str) -> DeviceUnavailableError:
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())] + there
    hint = ""
    if wanted.startswith("cuda") and torch.version.cuda is None:
        hint = f"; torch {torch.__version__} was built without CUDA, install a build that has it"
    return DeviceUnavailableError(
        f"SIGLIP_DEVICE={wanted!r} is not on this machine, which has {', '.join(there)}{hint}. Set "
        "SIGLIP_DEVICE to one of them, or to auto"
    )


def card_names() -> list[str]:
    """Return a name for each CUDA device, in torch's order.

    By its hardware: ``CUDA_VISIBLE_DEVICES`` gives one card other numbers in other processes.
    """
    return [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]


def choose_dtype(wanted: DType, device: str) -> torch.dtype:
    """Choose the dtype; ``auto`` is bfloat16 where the hardware multiplies it, else float32."""
    if wanted != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[wanted]
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if device == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU has AVX512-BF16 or AMX; False without /proc/cpuinfo."""
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return False
    return any(flag in flags for flag in _BFLOAT16_FLAGS)


def device_name(device: str) -> str:
    """Return the name of the GPU or processor, for reports."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)} ({device})"
    processor = platform.processor() or platform.machine()
    return f"{processor} ({device}, {torch.get_num_threads()} threads)"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that the device or the host ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU allocator, MPS and cuBLAS have no exception class of their own.
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        says in text
        for says in ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )


def give_back_memory() -> None:
    """Release the memory that torch caches on the devices."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
