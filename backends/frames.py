"""Length-prefixed messages over pipes: eight bytes, little-endian, then as many bytes as they say."""

import struct
from collections.abc import Iterator
from typing import IO

_LENGTH = struct.Struct("<Q")


def frame(*payloads: bytes) -> bytes:
    """The payloads as one run of frames."""
    return b"".join(part for payload in payloads for part in (_LENGTH.pack(len(payload)), payload))


def write_frame(stream: IO[bytes], *payloads: bytes) -> None:
    """Write each payload as a frame; blocks until all is written."""
    for payload in payloads:
        stream.write(_LENGTH.pack(len(payload)))
        stream.write(payload)


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next payload of a buffered stream; None where the stream ends, even amid a frame."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    payload = stream.read(length)
    return payload if len(payload) == length else None


class Frames:
    """Puts frames together from pieces of any size, as a non-blocking read gives them."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The payloads that `piece` completes."""
        self._pending += piece
        while len(self._pending) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._pending)
            end = _LENGTH.size + length
            if len(self._pending) < end:
                return
            payload = bytes(self._pending[_LENGTH.size : end])
            del self._pending[:end]
            yield payload
