"""Frames of the link: COBS and CRC-32, byte by byte from their definitions.

Mirrors ``hw.link.frames``. The driver uses the packages ``cobs`` and ``zlib`` instead, so that the
three can be compared.
"""

# Ref: S. Cheshire, M. Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM ToN 7(2), 1999
# Ref: R. N. Williams, "A painless guide to CRC error detection algorithms", 1993

__all__ = ["cobs_decode", "cobs_encode", "crc32", "decode_frame", "encode_frame"]


def crc32(content: bytes) -> int:
    """CRC-32 as zlib and Ethernet define it: 0xedb88320 reflected, all ones before and after."""
    remainder = 0xffffffff
    for byte in content:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0xedb88320 if remainder & 1 else 0)
    return remainder ^ 0xffffffff


def cobs_encode(content: bytes) -> bytes:
    """Code ``content`` without a zero byte.

    A block is a code byte c and c - 1 bytes; it stands for these bytes and, if c < 255 and it is
    not the last block, a zero. A full block (c = 255) that ends the content is the last.
    """
    code = bytearray()
    blocks = content.split(b"\x00")
    for number, block in enumerate(blocks):
        while len(block) > 254 or (len(block) == 254 and number < len(blocks) - 1):
            code += b"\xff" + block[:254]
            block = block[254:]
        code += bytes([len(block) + 1]) + block
    return bytes(code)


def cobs_decode(code: bytes) -> bytes:
    """Content of a code.

    Raises
    ------
    ValueError
        If the code has a zero byte or ends inside a block.
    """
    content = bytearray()
    start = 0
    while start < len(code):
        end = start + code[start]
        block = code[start + 1:end]
        if code[start] == 0 or 0 in block or end > len(code):
            raise ValueError(f"COBS code of {len(code)} bytes is broken at byte {start}")
        content += block
        if end < len(code) and code[start] != 255:
            content.append(0)
        start = end
    return bytes(content)


def encode_frame(content: bytes) -> bytes:
    """Bytes on the wire for ``content``, delimiters included."""
    return b"\x00" + cobs_encode(content + crc32(content).to_bytes(4, "little")) + b"\x00"


def decode_frame(code: bytes) -> bytes | None:
    """Content of the bytes between two delimiters, or None if they are no good frame."""
    try:
        content = cobs_decode(code)
    except ValueError:
        return None
    if len(content) < 6 or crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
        return None
    return content[:-4]
