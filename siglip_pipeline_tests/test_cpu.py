"""What is known of this machine's CPU."""

import os
from pathlib import Path

import pytest

from siglip_pipeline.cpu import available_cores, cpu_flags


def test_features_of_the_cpu_are_read_from_linux(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: some avx512_bf16\nflags\t\t: fpu avx2\n")
    assert cpu_flags(cpuinfo) >= {"fpu", "avx2"}
    assert "avx512_bf16" not in cpu_flags(cpuinfo)
    assert cpu_flags(tmp_path / "absent") == frozenset()


def test_cores_are_those_of_this_process_or_where_none_can_say_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cores() == 8
