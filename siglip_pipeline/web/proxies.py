"""Find the client of a request that came through reverse proxies."""

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from starlette.datastructures import Headers
from starlette.types import Scope

Network = IPv4Network | IPv6Network
_Address = IPv4Address | IPv6Address


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse addresses and networks that are separated by commas.

    Raises:
        ValueError: naming the one that is neither.
    """
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def behind_proxies(scope: Scope, trusted: Sequence[Network]) -> Scope:
    """Return a request's scope with the client and the scheme that trusted proxies report.

    ``X-Forwarded-For`` is read from its end: each proxy appends the address of its client. Anyone
    can forge what stands before the last untrusted address. Without a trusted peer nothing changes.

    Args:
        scope: of ASGI; its client is the peer of the connection.
        trusted: addresses of proxies that set ``X-Forwarded-For`` and ``X-Forwarded-Proto``.
    """
    peer = _address(scope["client"][0]) if trusted and scope.get("client") else None
    if peer is None or not _is_in(peer, trusted):
        return scope
    headers = Headers(scope=scope)
    client = peer
    for hop in reversed(",".join(headers.getlist("x-forwarded-for")).split(",")):
        if not _is_in(client, trusted) or (reported := _address(hop)) is None:
            break
        client = reported
    changed: Scope = {"client": (str(client), 0)} if client != peer else {}
    scheme = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
    if scheme in ("http", "https"):
        changed["scheme"] = scheme
    return {**scope, **changed}


def is_among(host: str, networks: Sequence[Network]) -> bool:
    """Return whether a host, as an address, lies in one of the networks."""
    address = _address(host)
    return address is not None and _is_in(address, networks)


def one_client(host: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 one."""
    address = _address(host)
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address), 64), strict=False))
    return host if address is None else str(address)


def _is_in(address: _Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _address(text: str) -> _Address | None:
    """Parse an address with or without a port; IPv4 mapped to IPv6 becomes IPv4."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
