"""Break one promise after the other in a copy, and name those that no test noticed.

    python -m siglip_pipeline_tests.sabotage [--only TEXT] [--no-baseline]

First all named tests must pass on the copy as it is.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from siglip_pipeline_tests.sabotage.forked import OUTPUT, import_libraries, run
from siglip_pipeline_tests.sabotage.sabotages import ROOT, Sabotage, read_sabotages

_TIMES = itertools.count(1)
_FAILED = 1
"""Exit status of pytest if tests ran and failed; others mean that they did not run."""


def main() -> int:
    """Return 0 if every sabotage was noticed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="those with TEXT in them")
    parser.add_argument("--no-baseline", action="store_true", help="the tests are known to pass")
    options = parser.parse_args()
    chosen = [s for s in read_sabotages() if options.only in f"{s.breaks} {s.file} {s.test}"]
    import_libraries()
    with tempfile.TemporaryDirectory(prefix="siglip-sabotage-") as folder:
        copy = Path(folder).resolve() / "copy"
        _copy_to(copy)
        if not options.no_baseline and (status := _run(copy, sorted({s.test for s in chosen}))):
            print(f"the tests do not pass as they are (pytest ended with {status})")
            return 2
        unnoticed = [sabotage for sabotage in chosen if not _is_noticed(sabotage, copy)]
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} were noticed")
    for sabotage in unnoticed:
        print(f"unnoticed: {sabotage.breaks} ({sabotage.file}; {sabotage.test})")
    return 1 if unnoticed or not chosen else 0


def _copy_to(copy: Path) -> None:
    """Copy what git knows of, and new files that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout.split(b"\0")
    for name in map(os.fsdecode, filter(None, listed)):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def _is_noticed(sabotage: Sabotage, copy: Path) -> bool:
    began = time.monotonic()
    path = copy / sabotage.file
    kept = path.stat()
    before = sabotage.apply(copy)
    # Python recognises a changed file by its time in seconds and its size.
    os.utime(path, (next(_TIMES),) * 2)
    try:
        status = _run(copy, [sabotage.test])
    finally:
        path.write_text(before)
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    said = {0: "UNNOTICED", _FAILED: "noticed"}.get(status, f"pytest ended with {status}")
    print(f"{said:10} {time.monotonic() - began:5.1f} s  {sabotage.breaks}", flush=True)
    return status == _FAILED


def _run(copy: Path, tests: Sequence[str]) -> int:
    """Run tests on the copy; pytest's exit status."""
    status = run(copy, ["-m", "", *tests])
    if status not in (0, _FAILED):
        print((copy / OUTPUT).read_text()[-2000:])
    return status


if __name__ == "__main__":
    sys.exit(main())
