"""The log's public files over HTTP, read-only, as C2SP tlog-tiles has them.

    GET <prefix>/checkpoint                     the last one; never cached
    GET <prefix>/retention                      what was pruned, and by which policy, as C2SP tlog-tiles asks
    GET <prefix>/checkpoint.witnessed           the last one that a quorum of witnesses has signed (ours)
    GET <prefix>/tile/<L>/<N>[.p/<W>]           hashes; immutable
    GET <prefix>/tile/entries/<N>[.p/<W>]       entries; immutable, gzip where it is accepted
    GET <prefix>/log.vkey, log.ml-dsa-44.vkey   verifier keys, for convenience: whoever trusts must have them otherwise

A partial tile whose full one is there may be gone: then it is 404, and readers take the full one, as the standard says.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from hashlib import sha256

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from eastwest.errors import Error, NotFound
from eastwest.log.ports import LogFiles
from eastwest.log.tiles import CHECKPOINT_PATH, TILE_WIDTH, WITNESSED_PATH, Tile, bundle_path
from eastwest.store.log_files import RETENTION_PATH

FULL_CACHING = "public, max-age=31536000, immutable"
PARTIAL_CACHING = "public, max-age=600, immutable"
"""A partial tile never changes either, but it is gone once the full one is there."""
NO_CACHING = "no-cache"
AT_ONCE = 16
BYTES_AT_ONCE = 64 << 20
"""Of tiles and bundles that readers are taking: many slow ones must not cost the memory of whoever issues."""
PIECE = 64 * 1024
KEPT_BUNDLES = 32
"""Compressed full bundles that are kept, of some 100 kB each."""
GZIP_LEVEL = 6
MIN_GZIP_BYTES = 1024
_PLACE = re.compile(r"(0|[1-9][0-9]?|entries)/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")
_log = structlog.get_logger()
Endpoint = Callable[[Request], Awaitable[Response]]


def log_app(files: LogFiles, vkeys: Mapping[str, str], prefix: str = "") -> Starlette:
    """The application for ``PublicListener``. ``vkeys``: file name to line; ``prefix``: path before all others."""
    tiles = _Tiles(files)

    def note(name: str) -> Endpoint:
        async def answer(_: Request) -> Response:
            try:
                return PlainTextResponse(await tiles.read(name), headers=_headers(NO_CACHING))
            except Error as error:
                return _refused(error, name)

        return answer

    async def tile(request: Request) -> Response:
        place = parse_place(request.path_params["place"])
        if place is None:
            return PlainTextResponse("the log has no such file\n", 404, headers=_headers(NO_CACHING))
        path, is_full, is_bundle = place
        zipped = is_bundle and _accepts_gzip(request.headers.get("accept-encoding", ""))
        try:
            content, is_gzip = await tiles.tile(path, is_full=is_full, zipped=zipped)
        except Error as error:
            return _refused(error, path)
        if not tiles.take(len(content)):
            headers = _headers("no-store") | {"retry-after": "10"}
            return PlainTextResponse("too much is being read in this moment\n", 503, headers=headers)
        headers = _headers(FULL_CACHING if is_full else PARTIAL_CACHING)
        if is_bundle:
            headers["vary"] = "accept-encoding"
        if is_gzip:
            headers["content-encoding"] = "gzip"
        return _InPieces(content, headers, partial(tiles.give_back, len(content)))

    def vkey(line: str) -> Endpoint:
        async def answer(_: Request) -> Response:
            return PlainTextResponse(f"{line}\n", headers=_headers(NO_CACHING))

        return answer

    app = Starlette(
        routes=[
            *(Route(f"{prefix}/{name}", note(name)) for name in (CHECKPOINT_PATH, WITNESSED_PATH, RETENTION_PATH)),
            Route(f"{prefix}/tile/{{place:path}}", tile),
            *(Route(f"{prefix}/{name}", vkey(line)) for name, line in vkeys.items()),
        ]
    )
    # A redirection would send callers to whatever host their request named.
    app.router.redirect_slashes = False
    return app


def parse_place(text: str) -> tuple[str, bool, bool] | None:
    """``<L>/<N>[.p/<W>]`` as (the file's path, whether it is full, whether it holds entries); None if it is no place.

    Only what is written in the one canonical form passes, so nothing in it can lead out of the log's directory.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        return None
    level, groups, partial = found.groups()
    index = int(groups.replace("x", "").replace("/", ""))
    width = int(partial) if partial else TILE_WIDTH
    is_bundle = level == "entries"
    number = 0 if is_bundle else int(level)
    if number > 63 or (partial and width >= TILE_WIDTH):
        return None
    path = bundle_path(index, width) if is_bundle else Tile(number, index, width).path
    # Another spelling of the same index, such as x000/001, is no place.
    return (path, not partial, is_bundle) if path == f"tile/{text}" else None


class _Tiles:
    """Reads files in threads, a few at once, and keeps what compression has cost."""

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._few = asyncio.Semaphore(AT_ONCE)
        self._zipped: OrderedDict[bytes, bytes] = OrderedDict()
        self._left = BYTES_AT_ONCE

    def take(self, size: int) -> bool:
        """Whether so many bytes may be on their way to a reader as well; ``give_back`` them then."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give_back(self, size: int) -> None:
        """They have been read, or their reader is gone."""
        self._left += size

    async def read(self, path: str) -> bytes:
        """A file; raises ``NotFound`` or ``Unavailable``."""
        async with self._few:
            return await asyncio.to_thread(self._files.read, path)

    async def tile(self, path: str, *, is_full: bool, zipped: bool) -> tuple[bytes, bool]:
        """A file and whether it is compressed, which small ones are not."""
        content = await self.read(path)
        if not zipped or len(content) < MIN_GZIP_BYTES:
            return content, False
        # By its contents: a file that was changed on the disk must not be hidden by what is kept here.
        key = sha256(content).digest()
        if key in self._zipped:
            self._zipped.move_to_end(key)
            return self._zipped[key], True
        async with self._few:
            small = await asyncio.to_thread(gzip.compress, content, GZIP_LEVEL, mtime=0)
        if is_full:
            self._zipped[key] = small
            while len(self._zipped) > KEPT_BUNDLES:
                self._zipped.popitem(last=False)
        return small, True


class _InPieces(Response):
    """A body that waits for its reader: sent as one, all of it would lie in the connection's buffer."""

    media_type = "application/octet-stream"

    def __init__(self, content: bytes, headers: Mapping[str, str], done: Callable[[], None]) -> None:
        super().__init__(content, headers=headers)
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive  # nothing in them changes the answer
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for at in range(0, len(self.body), PIECE):
                await send({"type": "http.response.body", "body": self.body[at : at + PIECE], "more_body": True})
            # It waits until the last piece has been taken.
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._done()


def _headers(caching: str) -> dict[str, str]:
    return {"cache-control": caching, "x-content-type-options": "nosniff"}


def _refused(error: Error, path: str) -> Response:
    if isinstance(error, NotFound):
        return PlainTextResponse("the log has no such file\n", 404, headers=_headers(NO_CACHING))
    _log.error("log.file_unreadable", path=path, error=str(error))
    return PlainTextResponse("the log cannot be read now\n", 503, headers=_headers("no-store"))


def _accepts_gzip(header: str) -> bool:
    """Whether ``accept-encoding`` names gzip (or everything) with a weight above nothing (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for part in header[:1000].split(","):
        name, _, parameters = part.strip().lower().partition(";")
        _, equals, weight = parameters.strip().partition("q=")
        try:
            weights[name.strip()] = float(weight) if equals else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0
