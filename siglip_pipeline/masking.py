"""Addresses without the secrets in them, for messages and logs."""

import re
from typing import Final

_USERINFO: Final = re.compile(r"(?<=://)([^/@\s:]*):\S*@")
_PIECES: Final = re.compile(r"[:/@#?&=%\s]+")
_SHORTEST = 3


def masked_url(url: str) -> str:
    """The address with its password replaced.

    >>> masked_url("s3://key:secret@bucket/in")
    's3://key:…@bucket/in'
    """
    return _USERINFO.sub(r"\1:…@", url)


def masked(text: str, url: str) -> str:
    """What somebody says about an address, without the password of the address.

    Libraries repeat parts of an address that they cannot read, and a password that was not
    percent-encoded is taken for other parts of it.
    """
    _, _, rest = url.partition("://")
    userinfo, at, _ = rest.rpartition("@")
    password = userinfo.partition(":")[2] if at else rest
    if "password=" in url:
        password += " " + url.partition("password=")[2]
    text = masked_url(text.replace(url, masked_url(url)))
    for secret in sorted({password, *_PIECES.split(password)}, key=len, reverse=True):
        if len(secret) >= _SHORTEST and (at or "password=" in url):
            text = text.replace(secret, "…")
    return text
