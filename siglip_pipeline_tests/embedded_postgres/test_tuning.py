"""Settings computed from the machine."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from siglip_pipeline.embedded_postgres.tuning import (
    GIB,
    MIB,
    Machine,
    build_settings,
    server_settings,
    this_machine,
)


def mib(value: str) -> int:
    assert value.endswith("MB")
    return int(value[:-2])


@given(gib=st.floats(0.25, 4096), cores=st.integers(1, 512))
def test_the_server_takes_a_modest_part_of_any_machine(gib: float, cores: int) -> None:
    settings = server_settings(Machine(memory_bytes=int(gib * GIB), cores=cores))
    assert 128 <= mib(settings["shared_buffers"]) <= max(128, 0.16 * gib * 1024)
    assert mib(settings["maintenance_work_mem"]) <= max(64, 0.05 * gib * 1024)
    assert int(settings["max_worker_processes"]) > cores
    assert int(settings["max_parallel_maintenance_workers"]) == cores - 1


def test_nothing_committed_is_at_risk() -> None:
    settings = server_settings(this_machine())
    assert not {"fsync", "synchronous_commit", "full_page_writes"} & settings.keys()


def test_a_container_counts_by_its_own_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(str(512 * MIB))
    assert this_machine(tmp_path).memory_bytes == 512 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert this_machine(tmp_path).memory_bytes > 512 * MIB


def build(rows: int, *, free: int = 64 * GIB, shared: int | None = GIB, workers: int = 1):  # type: ignore[no-untyped-def]
    machine = Machine(memory_bytes=64 * GIB, cores=2, shared_memory_bytes=shared)
    return build_settings(rows, 2336, machine=machine, free_bytes=free, workers=workers)


def test_a_million_frames_get_memory_for_the_whole_graph() -> None:
    settings = build(1_000_000, shared=8 * GIB)
    assert settings.memory_bytes == settings.wanted_bytes
    assert 2.2 * GIB < settings.memory_bytes < 3 * GIB
    assert settings.workers == 1


@pytest.mark.parametrize(
    ("values", "workers", "why"),
    [
        ({"rows": 5_000}, 0, "too few rows"),
        ({"rows": 1_000_000, "shared": 64 * MIB}, 0, "/dev/shm holds only 64 MiB"),
        ({"rows": 100_000}, 1, "the whole graph fits"),
        ({"rows": 100_000, "shared": None}, 1, "the whole graph fits"),
        ({"rows": 1_000_000, "free": GIB}, 1, "does not fit"),
    ],
)
def test_workers_and_memory_follow_what_there_is(
    values: dict[str, int], workers: int, why: str
) -> None:
    settings = build(**values)
    assert settings.workers == workers
    assert why in settings.why
    assert settings.memory_bytes <= max(64 * MIB, values.get("free", 64 * GIB) // 2)


def test_a_server_elsewhere_gets_a_safe_amount() -> None:
    settings = build_settings(10**8, 2336, machine=None, free_bytes=64 * GIB, workers=3)
    assert settings.memory_bytes == 2 * GIB
    assert settings.workers == 3
