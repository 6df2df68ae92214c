"""Which device and dtype are chosen: by what the machine says."""

import pytest
import torch

from siglip_pipeline.errors import DeviceUnavailableError
from siglip_pipeline.siglip import device as devices


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with neither CUDA nor MPS, until the test says otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def give_cuda(machine: pytest.MonkeyPatch, cards: int) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "device_count", lambda: cards)


def test_auto_prefers_cuda_then_mps_then_cpu(machine: pytest.MonkeyPatch) -> None:
    assert devices.choose_device("auto") == "cpu"
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device("auto") == "mps"
    give_cuda(machine, 2)
    assert devices.choose_device("auto") == "cuda:0"


def test_a_device_asked_for_by_name_is_that_device(machine: pytest.MonkeyPatch) -> None:
    give_cuda(machine, 2)
    assert devices.choose_device("cuda") == "cuda:0"
    assert devices.choose_device("cuda:1") == "cuda:1"
    assert devices.choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("wanted", "cards", "says"),
    [
        ("cuda", 0, "not on this machine, which has cpu"),
        ("cuda:2", 2, "which has cuda:0, cuda:1, cpu"),
        ("mps", 0, "not on this machine, which has cpu"),
        ("gpu", 1, "not a device; allowed are auto, cuda, cuda:N, mps and cpu"),
        ("cuda:x", 1, "not a device"),
        ("cuda:-1", 1, "not a device"),
        ("", 0, "not a device"),
    ],
)
def test_an_absent_device_never_becomes_a_silent_cpu_run(
    wanted: str, cards: int, says: str, machine: pytest.MonkeyPatch
) -> None:
    if cards:
        give_cuda(machine, cards)
    with pytest.raises(DeviceUnavailableError, match=says):
        devices.choose_device(wanted)


@pytest.mark.parametrize(
    ("flags", "times_as_fast", "expected"),
    [
        ("fpu avx2 fma avx512f avx512_bf16", 2.6, True),
        ("fpu avx2 fma avx512f avx512_bf16", 0.6, False),
        ("fpu avx2 fma avx512f avx512_bf16", 1.1, False),
        ("fpu avx2 fma avx512_bf16 amx_bf16 amx_tile", None, True),
        ("fpu avx2 fma avx512f", None, False),
        ("", None, False),
    ],
)
def test_bfloat16_on_a_cpu_that_is_faster_in_it(
    flags: str, times_as_fast: float | None, expected: bool, machine: pytest.MonkeyPatch
) -> None:
    def seconds(*formats: torch.dtype) -> list[float]:
        assert formats == (torch.float32, torch.bfloat16)
        assert times_as_fast is not None, "timed, though the features say it"
        return [times_as_fast, 1.0]

    machine.setattr(devices, "cpu_flags", lambda: frozenset(flags.split()))
    machine.setattr(devices, "product_seconds", seconds)
    assert devices.cpu_is_faster_in_bfloat16.__wrapped__() is expected


def test_a_layer_takes_time_in_each_number_format() -> None:
    seconds = devices.product_seconds(torch.float32, torch.bfloat16)
    assert len(seconds) == 2
    assert all(0 < spent < 60 for spent in seconds)


def test_a_layer_is_timed_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    used = set()
    linear = torch.nn.functional.linear

    def noted(rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        used.add(torch.get_num_threads())
        return linear(rows, weights)

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    torch.set_num_threads(2)
    try:
        devices.product_seconds(torch.float32, torch.bfloat16)
        assert (used, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("has", [True, False])
def test_auto_dtype_asks_the_hardware(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_is_faster_in_bfloat16", lambda: has)
    assert devices.choose_dtype("auto", "cpu") is (torch.bfloat16 if has else torch.float32)
    assert devices.choose_dtype("auto", "mps") is torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert devices.choose_dtype("auto", "cuda:0") is (torch.bfloat16 if has else torch.float32)


def test_a_named_dtype_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_is_faster_in_bfloat16", lambda: True)
    assert devices.choose_dtype("float32", "cpu") is torch.float32
    assert devices.choose_dtype("float16", "cuda:0") is torch.float16


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert devices.is_out_of_memory(error) is expected
