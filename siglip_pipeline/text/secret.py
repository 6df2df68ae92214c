"""Secrets: values that only :meth:`Secret.reveal` returns.

They are not ``str``: an f-string or a log line gets the masked text, ``json`` refuses them.
"""

import hmac
import os
import re
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, unquote

from siglip_pipeline.errors import with_causes

HIDDEN: Final = "…"
IN_A_PASSWORD: Final = "in a password, write @ : / # % and the like percent-encoded (@ as %40)"
"""The remedy for a URL that cannot be read."""

_CREDENTIALS: Final = re.compile(r"[^/@:]*:.*@", re.DOTALL)
"""The beginning of a URL without a scheme that has a password."""
_KEYWORDS: Final = re.compile(r"pass\w*\s*=", re.IGNORECASE)
"""In libpq's other notation, ``host=… password=…``, which no setting takes."""
_NAMING_SCHEMES: Final = ("postgres", "db+postgres", "abfs")
"""Schemes in which the text before the @ is a user name; in others it may be a token."""
_QUERY: Final = re.compile(r"[?#]")
_AFTER_HOST: Final = re.compile(r"[/?#]")
_PIECES: Final = re.compile(r"[:/@#?&;=%,\s]+")
_SHORTEST: Final = 3

SHOWN_PARAMETERS: Final = frozenset(
    {
        *("host", "hostaddr", "port", "dbname", "user", "connect_timeout", "application_name"),
        *("sslmode", "sslrootcert", "target_session_attrs", "db", "virtual_host", "ssl_cert_reqs"),
    }
)
"""URL parameters that are shown. Any other may hold a password or a signature."""


class Secret:
    """A value that is hidden completely: a key, or an address that is itself a key.

    Args:
        value: what :meth:`reveal` gives back.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def of(cls, value: "str | os.PathLike[str] | Secret") -> Self:
        """Return the value as a secret of this kind; a secret is returned unchanged.

        Raises:
            ValueError: it is neither a text nor a path.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str | os.PathLike):
            return cls(os.fspath(value))
        raise ValueError("must be a text")

    def reveal(self) -> str:
        """Return the value: for connecting, and for the environment of our own services."""
        return self._value

    def matches(self, given: str) -> bool:
        """Return whether the text is the secret, compared in constant time."""
        return hmac.compare_digest(given.encode(), self._value.encode())

    def masked(self, text: object) -> str:
        """Return a text without the secret and its parts.

        Libraries quote parts of an address that they cannot parse, and they take a password that is
        not percent-encoded for other parts of the address.
        """
        said = str(text).replace(self._value, str(self))
        for secret in sorted(_variants(self._secrets()), key=len, reverse=True):
            said = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, said)
        return said

    def masked_error(self, error: BaseException) -> BaseException:
        """Return the cause to raise another error from: ``error``, or a copy without the secret.

        Dagster and logs also show the causes of an error. The copy keeps the traceback.
        """
        for cause in with_causes(error):
            if self.masked(said := f"{cause} {cause!r}") != said:
                message = f"{type(error).__name__}: {self.masked(error)}"
                return RuntimeError(message).with_traceback(error.__traceback__)
        return error

    def _secrets(self) -> list[str]:
        """Return the parts to hide; of a webhook's URL, all but scheme and host."""
        _, separator, rest = self._value.partition("://")
        if not separator:
            return [self._value]
        authority, *tail = _AFTER_HOST.split(rest, maxsplit=1)
        return [authority.rpartition("@")[0], *tail]

    def __str__(self) -> str:
        return HIDDEN

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the value: a decoding process opens the same storage."""
        return type(self), (self._value,)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Return the schema: a text becomes a secret, which is masked in JSON."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls.of, serialization=core_schema.to_string_ser_schema(when_used="json")
        )


class SecretUrl(Secret):
    """A URL or folder that is shown without its secrets.

    Hides the password, a user without one (which may be a token), and every parameter but
    :data:`SHOWN_PARAMETERS`. A folder is shown unchanged.

    >>> SecretUrl("s3://key:secret@bucket/in?sig=abc")
    SecretUrl('s3://key:…@bucket/in?…')
    """

    __slots__ = ()

    @property
    def folder(self) -> Path | None:
        """Return the folder on this machine that it names; None for a URL."""
        return None if "://" in self._value else Path(self._value)

    def startswith(self, prefix: str | tuple[str, ...]) -> bool:
        """Return whether it begins so, e.g. with the scheme of a storage, broker or database."""
        return self._value.startswith(prefix)

    def __fspath__(self) -> str:
        """Return the folder, for ``Path`` and ``open``.

        Raises:
            TypeError: it is a URL.
        """
        if self.folder is None:
            raise TypeError(f"{self} is no folder of this machine")
        return self._value

    def __str__(self) -> str:
        return self._split()[0]

    def _secrets(self) -> list[str]:
        return self._split()[1]

    def _split(self) -> tuple[str, list[str]]:
        """Return the masked text, and the parts that it hides."""
        scheme, separator, rest = self._value.partition("://")
        if not separator:
            if _KEYWORDS.search(self._value):
                return HIDDEN, [self._value]
            if not _CREDENTIALS.match(self._value):
                return self._value, []  # a folder, perhaps with an @ in its name
            scheme, rest = "", self._value
        userinfo, at, place = rest.rpartition("@")
        if _QUERY.search(userinfo):
            # An @ among the parameters, or a password that was not percent-encoded.
            return f"{scheme}{separator}{HIDDEN}", [rest]
        user, colon, password = userinfo.partition(":")
        if at and not colon and not scheme.startswith(_NAMING_SCHEMES):
            user, password = "", userinfo
        secrets = [password] if password else []
        shown = f"{scheme}{separator}{user}{colon}{HIDDEN if password else ''}{at}"
        path, *queries = _QUERY.split(place)
        shown += path
        for mark, query in zip(_QUERY.findall(place), queries, strict=True):
            pairs = re.split(r"[&;]", query)
            hidden = {p for p in pairs if p.partition("=")[0].lower() not in SHOWN_PARAMETERS}
            shown += mark + "&".join(HIDDEN if pair in hidden else pair for pair in pairs)
            secrets += [*hidden, *(pair.partition("=")[2] for pair in hidden)]
        return shown, secrets


def _variants(secrets: list[str]) -> set[str]:
    """Return each secret as a message may quote it: encoded, decoded, in the parts of a parser."""
    forms = {f for s in secrets for f in (s, unquote(s), quote(s, safe=""), *_PIECES.split(s))}
    return {form for form in forms if len(form) >= _SHORTEST}
