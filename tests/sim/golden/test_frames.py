import random
import zlib

import pytest
from cobs import cobs

from sim.golden.frames import cobs_decode, cobs_encode, crc32, decode_frame, encode_frame

LENGTHS = [*range(20), 252, 253, 254, 255, 256, 507, 508, 509, 510, 511, 762, 1000]


@pytest.mark.parametrize("zeros", [0, 0.01, 0.3, 1])
def test_equals_independent_packages(zeros):
    source = random.Random(1)
    for length in LENGTHS:
        content = bytes(0 if source.random() < zeros else source.randrange(1, 256)
                        for _ in range(length))
        assert cobs_encode(content) == cobs.encode(content)
        assert cobs_decode(cobs_encode(content)) == content
        assert crc32(content) == zlib.crc32(content)
        if length >= 2:
            assert decode_frame(encode_frame(content)[1:-1]) == content


def test_known_values():
    assert crc32(b"123456789") == 0xcbf43926
    assert cobs_encode(b"") == b"\x01"
    assert cobs_encode(b"\x00") == b"\x01\x01"
    assert cobs_encode(bytes(range(1, 255))) == b"\xff" + bytes(range(1, 255))
    assert cobs_encode(bytes(range(256))) == b"\x01\xff" + bytes(range(1, 255)) + b"\x02\xff"


def test_broken_codes_are_refused_as_by_the_package():
    source = random.Random(2)
    for _ in range(5000):
        code = bytes(source.choice([0, 1, 2, 3, 4, 255]) for _ in range(source.randrange(12)))
        try:
            expected = cobs.decode(code)
        except cobs.DecodeError:
            expected = None
        try:
            actual = cobs_decode(code)
        except ValueError:
            actual = None
        assert actual == expected, code


def test_broken_frames_are_none():
    frame = encode_frame(b"\x01\x02\x03")[1:-1]
    assert decode_frame(frame) == b"\x01\x02\x03"
    assert decode_frame(frame[:-1]) is None
    assert decode_frame(b"") is None
    assert decode_frame(encode_frame(b"\x01")[1:-1]) is None
    for position in range(len(frame)):
        broken = bytearray(frame)
        broken[position] ^= 0x10
        assert decode_frame(bytes(broken)) is None
