"""Byte-level BPE: any text survives, in one piece or token by token."""

import dataclasses

import pytest
from tokenizers import pre_tokenizers

from host.models.examples import tiny_vocabulary
from host.text.splits import SPLITS
from host.text.tokenizer import (
    PieceTokenizer,
    StreamDecoder,
    TextError,
    Tokenizer,
    byte_symbols,
)
from host.text.vocabulary import PieceVocabulary, Vocabulary

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


@pytest.mark.parametrize(("split", "words"), [
    ("gpt-2", ["I", "'m", "\u012065537", "\u0120", "\u0120steps", "\u010a", "\u010a",
               "ago"]),
    ("smollm", ["I", "'m", "\u0120", "6", "5", "5", "3", "7", "\u0120", "\u0120steps",
                "\u010a", "\u010a", "ago"]),
    ("llama-bpe", ["I", "'m", "\u0120", "655", "37", "\u0120", "\u0120steps", "\u010a\u010a",
                   "ago"])])
def test_splits(split, words):
    """How each kind of file cuts text into words."""
    text = "I'm 65537  steps\n\nago"
    found = [word for word, _ in SPLITS[split].pre_tokenizer().pre_tokenize_str(text)]
    assert found == words


def test_controls_have_no_text():
    vocabulary = tiny_vocabulary()
    tokenizer = Tokenizer(dataclasses.replace(
        vocabulary, tokens=(*vocabulary.tokens, "<|im_start|>"), controls=(259,), first=259))
    assert tokenizer.decode([259, *tokenizer.encode("the"), 259, 0]) == "the"
    assert 259 not in tokenizer.encode("<|im_start|>")
    assert tokenizer.vocabulary.start == 259


class TestPieces:
    """BPE of SentencePiece."""

    WORDS = ("\u2581", "a", "b", "c", "ab", "bc", "\u2581a", "abc", "bcb")

    def vocabulary(self, scores, **options):
        byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
        return PieceVocabulary(
            ("<unk>", "<s>", "</s>", *byte_tokens, *self.WORDS),
            (0.0,) * 259 + tuple(scores), start=1, end_of_document=2, controls=(0,), **options)

    def words(self, tokenizer, text):
        return [tokenizer.vocabulary.tokens[token] for token in tokenizer.encode(text)]

    def test_best_score_first(self):
        one = PieceTokenizer(self.vocabulary([-9, -9, -9, -9, -1, -2, -3, -4, -5], space=False))
        assert self.words(one, "abcb") == ["abc", "b"]
        two = PieceTokenizer(self.vocabulary([-9, -9, -9, -9, -2, -1, -3, -5, -4], space=False))
        assert self.words(two, "abcb") == ["a", "bcb"]

    def test_space_of_its_own(self):
        scores = [-9, -9, -9, -9, -2, -3, -1, -4, -5]
        with_space = PieceTokenizer(self.vocabulary(scores))
        assert self.words(with_space, "a a") == ["\u2581a", "\u2581a"]
        assert with_space.decode(with_space.encode("a a")) == "a a"
        without = PieceTokenizer(self.vocabulary(scores, space=False))
        assert self.words(without, "a a") == ["a", "\u2581a"]
        assert without.decode(without.encode(" a")) == " a"

    @pytest.mark.parametrize("text", TEXTS)
    def test_text_survives(self, text):
        tokenizer = PieceTokenizer(self.vocabulary([0.0] * 9))
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text
        decoder = StreamDecoder(tokenizer)
        streamed = "".join(map(decoder.feed, tokens)) + decoder.finish()
        assert streamed == (" " + text if text else "")

    def test_controls_have_no_text(self):
        tokenizer = PieceTokenizer(self.vocabulary([0.0] * 9))
        assert tokenizer.decode([1, *tokenizer.encode("abc"), 2, 0]) == "abc"

    def test_every_byte_needs_a_token(self):
        vocabulary = self.vocabulary([0.0] * 9)
        tokens = tuple(token.replace("<0x41>", "A") for token in vocabulary.tokens)
        with pytest.raises(ValueError, match=r"^Vocabulary must have a token for every byte, but "
                                             r"none for 0x41$"):
            PieceTokenizer(dataclasses.replace(vocabulary, tokens=tokens))
