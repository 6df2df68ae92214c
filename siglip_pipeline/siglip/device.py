"""Detect the device and number format for a model."""

import functools
import platform
import time
from typing import Final

import torch

from siglip_pipeline.cpu import cpu_flags
from siglip_pipeline.errors import DeviceUnavailableError
from siglip_pipeline.siglip.model_options import DType
from siglip_pipeline.text.in_words import counted

_BFLOAT16_MUST_GAIN: Final = 1.2
"""So much faster than float32: enough that two processes on one machine choose alike."""
_ROWS, _INNER, _OUTER = 64, 768, 768
"""Of the product that is timed: a text through a layer of a base model. It takes half a
millisecond, so that on a busy machine too one of 30 is not interrupted."""


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
    """Choose the dtype; ``auto`` is bfloat16 where it is faster than float32, else float32."""
    if wanted != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[wanted]
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    if device == "cpu" and cpu_is_faster_in_bfloat16():
        return torch.bfloat16
    return torch.float32


@functools.cache
def cpu_is_faster_in_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32.

    AMX always does, and without a feature for it bfloat16 is emulated. AVX512-BF16 alone says
    little, so both are timed: on two kinds of processor bfloat16 was 2.6 and 0.6 times as fast.
    """
    flags = cpu_flags()
    if "amx_bf16" in flags:
        return True
    if "avx512_bf16" not in flags:
        return False
    float32, bfloat16 = product_seconds(torch.float32, torch.bfloat16)
    return float32 >= _BFLOAT16_MUST_GAIN * bfloat16


@torch.inference_mode()
def product_seconds(*formats: torch.dtype) -> list[float]:
    """Return the least seconds that a layer takes in each number format; they take turns.

    One thread computes, as for each worker of the engine. Of two, on a busy machine, one waits for
    the other for longer than both compute, in either format.
    """
    pairs = [
        (torch.ones(_ROWS, _INNER, dtype=dtype), torch.ones(_OUTER, _INNER, dtype=dtype))
        for dtype in formats
    ]
    best = [float("inf")] * len(pairs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(30):
            for number, (rows, weights) in enumerate(pairs):
                began = time.perf_counter()
                torch.nn.functional.linear(rows, weights)
                best[number] = min(best[number], time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return best


def device_name(device: str) -> str:
    """Return the name of the GPU or processor, for reports."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)} ({device})"
    processor = platform.processor() or platform.machine()
    return f"{processor} ({device}, {counted(torch.get_num_threads(), 'thread')})"


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
