"""The fingerprints of the OpenPGP keys in a file. A host with apt alone has no program that says them."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PUBLIC_KEY = 6  # the tag of the packet that begins a key; its subkeys, names and signatures have others
_ARMOUR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n]+: [^\r\n]*\r?\n)*\s*(.*?)\r?\n-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL,
)


class KeyFileError(Exception):
    """The file holds no OpenPGP keys that can be read."""


def binary(content: bytes) -> bytes:
    """The packets of a key file, without the ASCII armour that it may have.

    Raises:
        KeyFileError: the armour is damaged.
    """
    if not content.lstrip().startswith(b"-----BEGIN"):
        return content
    # The last line of a block may be a checksum, which begins with =.
    texts = [
        b"".join(line for line in block.split() if not line.startswith(b"=")) for block in _ARMOUR.findall(content)
    ]
    try:
        return b"".join(base64.b64decode(text, validate=True) for text in texts)
    except ValueError as error:
        raise KeyFileError("its ASCII armour is damaged") from error


def fingerprints(packets: bytes) -> list[str]:
    """The fingerprint of each key, in capitals, in their order.

    Raises:
        KeyFileError: it is something else, or a part of a key.
    """
    found = [_fingerprint(body) for tag, body in _split(packets) if tag == _PUBLIC_KEY]
    if not found:
        raise KeyFileError("it holds no public key")
    return found


def _split(packets: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the body of each packet (RFC 9580, section 4.2)."""
    at = 0
    try:
        while at < len(packets):
            if not packets[at] & 0x80:
                raise KeyFileError("it is no OpenPGP file")
            tag, start, length = (_new if packets[at] & 0x40 else _old)(packets, at)
            at = start + length
            if at > len(packets) or not length:
                raise KeyFileError("it is cut short")
            yield tag, packets[start:at]
    except IndexError:
        raise KeyFileError("it is cut short") from None


def _new(packets: bytes, at: int) -> tuple[int, int, int]:
    """The tag, the start of the body and its length, from a header in today's format."""
    tag, first = packets[at] & 0x3F, packets[at + 1]
    if first < 192:
        return tag, at + 2, first
    if first < 224:
        return tag, at + 3, (first - 192 << 8) + packets[at + 2] + 192
    if first < 255:
        raise KeyFileError("a packet in it comes in parts")  # which only packets of data may
    return tag, at + 6, int.from_bytes(packets[at + 2 : at + 6], "big")


def _old(packets: bytes, at: int) -> tuple[int, int, int]:
    """The same, from a header in the format of old."""
    tag, kind = packets[at] >> 2 & 0x0F, packets[at] & 0x03
    if kind == 3:
        raise KeyFileError("a packet in it has no length")
    start = at + 1 + (1 << kind)
    return tag, start, int.from_bytes(packets[at + 1 : start], "big")


def _fingerprint(body: bytes) -> str:
    """The fingerprint of a key of version 4, as all keys of package archives are (RFC 9580, section 5.5.4)."""
    if body[0] != 4:
        raise KeyFileError(f"it holds a key of version {body[0]}, where only version 4 is known")
    return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()  # noqa: S324 - the format says so
