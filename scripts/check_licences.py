"""List the licence of everything that is installed here; fail on one that is not permitted.

The licence is what a package's own metadata says: an SPDX expression, else the trove classifiers,
else the free text. What none of these tells is written down in KNOWN, with where it was read.
"""

import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from typing import Final

PERMITTED: Final = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC"),
        *("MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "CNRI-Python", "Zlib", "Unlicense"),
        # MPL covers single files, which are used unmodified.
        "MPL-2.0",
        # Libraries that are imported, not copied: psycopg.
        *("LGPL-3.0-only", "LGPL-3.0-or-later"),
    }
)

CUDA: Final = re.compile("(nvidia|cuda)-")
"""What torch's usual wheels for Linux bring along. NVIDIA's own terms for CUDA allow its use;
whoever installs such a torch accepts them, and this project passes none of it on."""
CUDA_TERMS: Final = "LicenseRef-NVIDIA-Proprietary"

NAMES: Final = {
    "licenseref-nvidia-proprietary": CUDA_TERMS,
    "nvidia proprietary software": CUDA_TERMS,
    "apache software license": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "new bsd": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "gnu library or lesser general public license (lgpl)": "LGPL-3.0-or-later",
}
"""SPDX expressions by the names that metadata uses, in lower case."""

KNOWN: Final[dict[str, str]] = {
    # Nothing but requirements; its parts name these terms, as read in their License.txt.
    "cuda-toolkit": CUDA_TERMS,
    # Both in its LICENSE; its metadata says so in free text.
    "uritemplate": "BSD-3-Clause OR Apache-2.0",
}
"""Licences of packages whose metadata has none, by normalised name; say where each was read."""

BUNDLED: Final[dict[str, str]] = {
    # libheif and libde265, as read in its LICENSES_bundled.txt. The encoder x265 (GPL) is in the
    # wheels of pillow-heif, not in these.
    "pi-heif": "BSD-3-Clause AND LGPL-3.0-or-later",
}
"""Licences of packages whose wheels bring along more than their metadata says."""


def licence_of(distribution: Distribution) -> str | None:
    """Return an SPDX expression; None when the metadata says nothing that can be read."""
    if (bundled := BUNDLED.get(normalised(distribution.name))) is not None:
        return bundled
    metadata = distribution.metadata
    if "License-Expression" in metadata:
        return str(metadata["License-Expression"])
    classified = [
        NAMES.get(line.rpartition("::")[2].strip().lower())
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    if found := sorted({name for name in classified if name}):
        return " OR ".join(found)
    said = metadata["License"].strip() if "License" in metadata else ""
    if said.lower() in NAMES:
        return NAMES[said.lower()]
    if said and all(part in PERMITTED for part in _names(said)):
        return said
    return KNOWN.get(normalised(distribution.name))


def is_permitted(expression: str) -> bool:
    """Return whether a licence of each choice that the expression leaves is permitted.

    >>> is_permitted("MIT OR GPL-3.0-only"), is_permitted("MIT AND GPL-3.0-only")
    (True, False)
    """
    # OR binds weaker than AND; nested expressions do not occur.
    choices = re.split(r"\s+OR\s+", expression.replace("(", "").replace(")", ""))
    return any(all(name in PERMITTED for name in _names(choice)) for choice in choices)


def _names(expression: str) -> list[str]:
    # An exception only adds permissions.
    return re.split(r"\s+(?:AND|OR)\s+", re.sub(r"\s+WITH\s+\S+", "", expression))


def normalised(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def problems(installed: Iterable[Distribution]) -> list[str]:
    """Return a line for each package whose licence is unknown or not permitted."""
    found = []
    for distribution in installed:
        licence = licence_of(distribution)
        if licence is None:
            found.append(f"{distribution.name}: its metadata names no licence; see KNOWN")
        elif licence == CUDA_TERMS and CUDA.match(normalised(distribution.name)):
            continue
        elif not is_permitted(licence):
            found.append(f"{distribution.name}: {licence} is not among the permitted licences")
    return found


def main() -> int:
    """Print the list, or with --quiet only what is wrong."""
    installed = sorted(distributions(), key=lambda found: normalised(found.name))
    if "--quiet" not in sys.argv[1:]:
        for distribution in installed:
            print(f"{distribution.name} {distribution.version}: {licence_of(distribution)}")
    wrong = problems(installed)
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    print(f"licences of {len(installed)} packages: {len(wrong)} problems")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
