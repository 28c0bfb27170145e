"""Byte-level BPE: any text survives, in one piece or token by token."""

import pytest
from tokenizers import pre_tokenizers

from host.model import Vocabulary
from host.tokenizer import StreamDecoder, TextError, Tokenizer, byte_symbols
from tests.host.model_examples import tiny_vocabulary

TEXTS = ["", " ", "the other thing\n\n", "na\u00efve \u65e5\u672c\u8a9e \U0001f409",
         "a\tb\r\n  c\0", "<|endoftext|> is text here"]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(tiny_vocabulary())


def test_byte_symbols_are_those_of_the_tokenizers_package():
    symbols = byte_symbols()
    assert set(symbols) == set(pre_tokenizers.ByteLevel.alphabet())
    assert len(set(symbols)) == 256
    expected = ["\u0120", "\u010a", "!", "\u0121", "\xff"]
    assert [symbols[byte] for byte in b" \n!\x7f\xff"] == expected


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(tokenizer, text):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.vocabulary.end_of_document not in tokens


def test_merges_apply_in_order(tokenizer):
    the = tokenizer.vocabulary.tokens.index("the")
    th = tokenizer.vocabulary.tokens.index("th")
    assert tokenizer.encode("thethi")[:2] == [the, th]


def test_end_of_document_has_no_text(tokenizer):
    end = tokenizer.vocabulary.end_of_document
    assert tokenizer.decode([end, *tokenizer.encode("the"), end]) == "the"


@pytest.mark.parametrize("text", TEXTS)
def test_stream_equals_whole(tokenizer, text):
    decoder = StreamDecoder(tokenizer)
    assert "".join(map(decoder.feed, tokenizer.encode(text))) + decoder.finish() == text


def test_stream_holds_a_character_until_its_last_byte(tokenizer):
    decoder = StreamDecoder(tokenizer)
    assert [decoder.feed(token) for token in tokenizer.encode("\u65e5")] == ["", "", "\u65e5"]


def test_stream_replaces_what_is_cut_off(tokenizer):
    decoder = StreamDecoder(tokenizer)
    first, *_ = tokenizer.encode("\u65e5")
    assert decoder.feed(first) == ""
    assert decoder.finish() == "\ufffd"


def test_byte_without_token():
    symbols = byte_symbols()
    del symbols[0x41]
    tokenizer = Tokenizer(Vocabulary(("<|endoftext|>", *symbols), (), 0))
    assert tokenizer.decode(tokenizer.encode("the B")) == "the B"
    with pytest.raises(TextError, match=r"^Text must have only bytes that the vocabulary has a "
                                        r"token for, not 0x41$"):
        tokenizer.encode("the A")
