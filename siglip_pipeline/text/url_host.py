"""Hosts in the addresses of services."""


def url_host(host: str) -> str:
    """Return a host as written in a URL; for a wildcard address, the loopback address."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
