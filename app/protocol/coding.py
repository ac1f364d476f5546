"""Content codings of an answer: gzip and zstd, streaming, by codecs that outrun the stream.

On natural text one core compresses about 630 MB/s with ISA-L's gzip and with zstd at level 1, zlib 54; a worker
streams about 370 MB/s, so zlib would be the bottleneck and these are not.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal, Protocol

from isal import isal_zlib

from app.protocol.request import qualities

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Coding = Literal["gzip", "zstd"]

_PREFERRED: tuple[Coding, ...] = ("zstd", "gzip")
_GZIP_LEVEL = 1
_ZSTD_LEVEL = 1
_GZIP_WINDOW = 31  # the largest window, with gzip's header


def coding_of(accept_encoding: str) -> Coding | None:
    """The coding a client prefers of those we have; None for none, as where the header says nothing."""
    asked = qualities(accept_encoding)
    best: Coding | None = None
    most = 0.0
    for coding in _PREFERRED:
        quality = asked.get(coding, asked.get("*", 0.0))
        if quality > most:
            best, most = coding, quality
    return best


async def coded(chunks: AsyncGenerator[bytes, None], coding: Coding) -> AsyncGenerator[bytes, None]:
    """Compress chunk by chunk, each flushed, so that what was sent can be read before the end."""
    compress = _gzip() if coding == "gzip" else _zstd()
    # One chunk is held back: the last one carries the end of the stream, so that a page stays one piece.
    held: bytes | None = None
    async with aclosing(chunks):
        async for chunk in chunks:
            if held is not None:
                yield compress(held, last=False)
            held = chunk
    yield compress(held or b"", last=True)


class _Compress(Protocol):
    """Everything that goes out for a chunk; with `last`, the end of the stream too."""

    def __call__(self, chunk: bytes, *, last: bool) -> bytes: ...


class CodingError(Exception):
    """A body is not coded as its header says, or is cut off."""


def decoded_body(body: bytes, coding: str) -> bytes:
    """A whole body, decompressed. `coding` is its Content-Encoding, lower case. Raises CodingError."""
    if coding in ("", "identity") or not body:
        return body
    if coding not in ("gzip", "x-gzip", "zstd"):
        raise CodingError(f"the answer is coded as {coding[:40]!r}, which nobody asked for")
    pieces = []
    try:
        # Both allow several streams, one behind the other.
        while body:
            stream = zstd.ZstdDecompressor() if coding == "zstd" else isal_zlib.decompressobj(wbits=_GZIP_WINDOW)
            pieces.append(stream.decompress(body))
            if not stream.eof:
                raise CodingError(f"the answer's {coding} stream ends before its end")
            body = stream.unused_data
    except (isal_zlib.error, zstd.ZstdError, EOFError) as error:  # type: ignore[misc]  # its stub declares no class
        raise CodingError(f"the answer is not the {coding} that its header says: {error}") from None
    return b"".join(pieces)


def _gzip() -> _Compress:
    stream = isal_zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)

    def compress(chunk: bytes, *, last: bool) -> bytes:
        return stream.compress(chunk) + stream.flush(isal_zlib.Z_FINISH if last else isal_zlib.Z_SYNC_FLUSH)

    return compress


def _zstd() -> _Compress:
    stream = zstd.ZstdCompressor(level=_ZSTD_LEVEL)

    def compress(chunk: bytes, *, last: bool) -> bytes:
        return stream.compress(chunk, stream.FLUSH_FRAME if last else stream.FLUSH_BLOCK)

    return compress
