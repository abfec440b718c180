"""The body of an answer, unfolded piece by piece: a few bytes of gzip may become a thousand times as many."""

import zlib
from collections.abc import AsyncIterator
from typing import Final

from workers.models.errors import Fault

ACCEPT_ENCODING: Final = "gzip"  # of the codings that save much, the one that every Python has
CODINGS: Final = ("identity", "", ACCEPT_ENCODING, "x-gzip")
AS_GZIP: Final = zlib.MAX_WBITS | 16  # zlib's flag for gzip's head
PIECE_MAX: Final = 65_536


async def unfolded(folded: AsyncIterator[bytes], coding: str, name: str) -> AsyncIterator[bytes]:
    """The body that the server `name` sends; gzip is unfolded to pieces of at most PIECE_MAX bytes.

    Raises Fault where the coding is not in CODINGS, and where the gzip is broken or cut off.
    """
    coding = coding.strip().lower()
    if coding not in CODINGS:
        raise Fault("malformed", f"{name} answered in the encoding {coding[:20]!r}, which was not asked for.")
    unfolding = zlib.decompressobj(wbits=AS_GZIP) if coding not in CODINGS[:2] else None
    async for chunk in folded:
        if unfolding is None:
            yield chunk
            continue
        rest, full = chunk, False
        while (rest or full) and not unfolding.eof:  # behind a full piece there may be more, without further input
            try:
                piece = unfolding.decompress(rest, PIECE_MAX)
            except zlib.error as error:
                raise Fault("malformed", f"{name} answered with gzip that is broken ({error}).") from error
            rest, full = unfolding.unconsumed_tail, len(piece) == PIECE_MAX
            yield piece
    if unfolding is not None and not unfolding.eof:
        raise Fault("malformed", f"{name} answered with gzip that is cut off.")
