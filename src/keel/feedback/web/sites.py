"""Which names the server answers to, and which sites' pages may send it something."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi import Request

from keel.errors import UserError
from keel.feedback.refused import Refused

SAFE = ("GET", "HEAD", "OPTIONS")
_PORTS = {"http": 80, "https": 443}


class Sites:
    """The names that are the server's own: localhost, any IP address, the host it is bound to, its public URL's.

    Another site can let its own name point here (DNS rebinding), and its pages could then read our answers; it cannot
    do that with an IP address.
    """

    def __init__(self, public_url: str | None = None, host: str | None = None) -> None:
        """Raises UserError where the public URL is none."""
        self.public = None if public_url is None else _origin(public_url)
        """The public URL without a slash at its end."""
        self.secure = (self.public or "").startswith("https:")
        self._public_name = urlsplit(self.public or "").hostname  # a proxy may take the TLS off it
        named = (host, self._public_name)
        self._names = {"localhost", *(name.lower() for name in named if name)}

    async def check(self, request: Request) -> None:
        """A dependency of every route.

        Raises Refused for a Host that is not the server's own, for what another site's page sends, and for a sign-in
        without TLS whose cookie the browser would not keep.
        """
        host = request.headers.get("host", "")
        name = _name_of(host)
        if not self._is_ours(name):
            raise Refused(
                "forbidden", f"this server is not called {host!r}; start it with --public-url to give it a name"
            )
        origin = request.headers.get("origin")
        if request.method in SAFE:
            in_the_open = request.url.scheme == "http" and name != self._public_name and _asks_for_password(request)
        elif origin is None or is_bearer(request):
            return
        elif origin not in (self.public, f"http://{host}", f"https://{host}"):
            raise Refused("forbidden", "the request comes from a page of another site")
        else:
            in_the_open = origin.startswith("http:")
        if self.secure and in_the_open and not _is_this_machine(name):
            raise Refused("invalid", f"no browser stays signed in at an address without TLS; open {self.public}")

    def _is_ours(self, name: str) -> bool:
        return name in self._names or _address(name) is not None


def _asks_for_password(request: Request) -> bool:
    return request.url.path.startswith(("/sign-in", "/join/"))


def _name_of(host: str) -> str:
    """A Host header's name without the port; empty where it is not valid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a name is, if it is one."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_this_machine(name: str) -> bool:
    """Browsers trust it without TLS, and keep its cookies."""
    address = _address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


def is_bearer(request: Request) -> bool:
    """Whether the request brings a token, which no browser adds by itself: another site's page cannot have sent it."""
    return request.headers.get("authorization", "").lower().startswith("bearer ")


def _origin(url: str) -> str:
    """scheme://host, with the port where it is not the scheme's own, as browsers write it."""
    try:
        parts = urlsplit(url)
        scheme, name, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        scheme, name, port = "", None, None
    if (
        scheme not in _PORTS
        or not name
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
        or parts.username
    ):
        raise UserError(f"--public-url {url} is not of the form https://HOST or https://HOST:PORT, without a path")
    host = f"[{name}]" if ":" in name else name
    return f"{scheme}://{host}" if port in (None, _PORTS[scheme]) else f"{scheme}://{host}:{port}"
