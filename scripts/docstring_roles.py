"""Show Sphinx's roles in docstrings as code: ``:class:`.SearchFilter``` as ``SearchFilter``.

An extension of Griffe, which reads the docstrings for the documentation's site.
"""

import re
from typing import Any, Final

import griffe

_ROLE: Final = re.compile(r":[a-z]+:`~?\.?([^`]+)`")


class DocstringRoles(griffe.Extension):
    """Griffe extension that rewrites every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
