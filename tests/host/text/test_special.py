"""Special tokens in prompts, what a file leaves out, and the pre-tokenizers, beside judges."""

import dataclasses
import importlib.util
import json
import unicodedata
from pathlib import Path

import gguf
import pytest
from tokenizers import AddedToken, models, processors
from tokenizers import Tokenizer as BPETokenizer

from host.cli.options import DEFAULT_MODEL
from host.files import vocabulary as vocabulary_file
from host.files.errors import ModelFileError
from host.files.gguf import GGUFFile
from host.files.vocabulary import read_checkpoint_dialogue, write_vocabulary
from host.measure.tokenization import (
    compare_tokens,
    nasty_strings,
    publisher_judge,
    publisher_keys,
    trained_keys,
    trained_pieces,
    write_tokenizer,
)
from host.models.examples import tiny_vocabulary
from host.text.corpus import read_corpus
from host.text.special import SpecialTokenFinder
from host.text.splits import SPLITS
from host.text.tokenizer import PieceTokenizer, Tokenizer, byte_symbols, open_tokenizer
from host.text.vocabulary import PieceVocabulary, Vocabulary, begin, endings

CORPUS = Path(__file__).parents[2] / "data" / "corpus"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<tool>", "<tool><tool>", "[X]")


@pytest.fixture(scope="module")
def vocabulary():
    """Bytes, two merges, and two control tokens and three of a user from 259 on."""
    plain = tiny_vocabulary()
    return dataclasses.replace(plain, tokens=(*plain.tokens, *SPECIAL), controls=(259, 260),
                               ends=(260,), user=(261, 262, 263))


class TestFinder:
    @pytest.mark.parametrize(("text", "parts"), [
        ("", []), ("the", ["the"]), ("<|im_start|>", [259]),
        ("a<|im_start|>b<|im_end|>", ["a", 259, "b", 260]),
        ("<|im_end|><|im_end|>", [260, 260]), ("<|im_end|", ["<|im_end|"]),
        ("<|<|im_end|>im_end|>", ["<|", 260, "im_end|>"]),
        ("<tool><tool><tool>", [262, 261]),         # the longest first, from the left
        ("[X]<|endoftext|> [X]", [263, 0, " ", 263])])
    def test_prompt(self, vocabulary, text, parts):
        assert list(SpecialTokenFinder(vocabulary, special=True).parts(text)) == parts

    def test_text(self, vocabulary):
        """Only what a user has added is found in a text."""
        finder = SpecialTokenFinder(vocabulary, special=False)
        assert list(finder.parts("<|im_end|>[X]<|endoftext|>")) == [
            "<|im_end|>", 263, "<|endoftext|>"]

    def test_longest_first_wherever_it_stands(self, vocabulary):
        """As llama.cpp: a longer token is found before one that begins earlier."""
        crossed = dataclasses.replace(vocabulary, tokens=(*vocabulary.tokens, "ab", "bcd"),
                                      user=(264, 265))
        assert list(SpecialTokenFinder(crossed, special=True).parts("abcd")) == ["a", 265]

    def test_white_space_behind(self, vocabulary):
        stripped = dataclasses.replace(vocabulary, stripped=(260,))
        parts = SpecialTokenFinder(stripped, special=True).parts("a <|im_end|> \n\tb<|im_start|> c")
        assert list(parts) == ["a ", 260, "b", 259, " c"]


class TestTokens:
    def test_bytes(self, vocabulary):
        tokenizer = Tokenizer(vocabulary)
        text = "<|im_start|>the[X]"
        assert tokenizer.encode(text, special=True) == [
            259, vocabulary.tokens.index("the"), 263]
        assert tokenizer.encode(text)[-1] == 263
        assert 259 not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert endings(vocabulary) == {0, 260}

    def test_added_token_is_plain_text(self, vocabulary):
        """Its characters are no symbols of bytes."""
        added = dataclasses.replace(vocabulary, tokens=(*vocabulary.tokens, "\u00e9\u0120"),
                                    user=(264,))
        tokenizer = Tokenizer(added)
        assert tokenizer.encode("a\u00e9\u0120") == [*tokenizer.encode("a"), 264]
        assert tokenizer.decode([264]) == "\u00e9\u0120"

    def test_pieces(self):
        """SentencePiece's space of its own stands before every text behind a special token."""
        tokens = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
                  "\u2581", "a", "\u2581a", "[INST]")
        vocabulary = PieceVocabulary(tokens, (0.0,) * len(tokens), 1, 2, controls=(0,),
                                     user=(262,))
        tokenizer = PieceTokenizer(vocabulary)
        assert tokenizer.encode("[INST]a</s>a", special=True) == [262, 261, 2, 261]
        assert tokenizer.encode("</s>a")[0] != 2

    def test_composed(self):
        """Qwen's tokenizer composes characters; others do not."""
        text = "e\u0301"
        plain = Vocabulary(("<|endoftext|>", *byte_symbols()), (), 0)
        qwen = Tokenizer(dataclasses.replace(plain, split="qwen2"))
        assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)
        assert Tokenizer(plain).decode(Tokenizer(plain).encode(text)) == text


def test_file_of_its_own(tmp_path):
    """A tokenizer in a file finds special tokens in prompts only."""
    from host.text.vocabulary import TokenizerFile
    ids = {symbol: index for index, symbol in enumerate(byte_symbols())}
    tokenizer = BPETokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.add_special_tokens([AddedToken("<|im_end|>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = open_tokenizer(TokenizerFile(tmp_path / "tokenizer.json", 257, 256, 256))
    assert found.encode("<|im_end|>", special=True) == [256]
    assert 256 not in found.encode("<|im_end|>")
    assert found.text_of(256) == "<|im_end|>"


# What a file says, and what it leaves out.

BYTES = {"model": "gpt2", "pre": "gpt-2", "merges": ["t h", "th e"], "eos_token_id": 0,
         "tokens": ["<|endoftext|>", *byte_symbols(), "th", "the", "<|im_end|>"],
         "token_type": [3] + [1] * 258 + [3]}
PIECES = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", *(
    f"<0x{byte:02X}>" for byte in range(256)), "a"], "scores": [0.0] * 260,
          "token_type": [2, 3, 3] + [6] * 256 + [1]}


def read(tmp_path, keys, name="tokenizer"):
    write_tokenizer(tmp_path / "t.gguf", keys, name)
    return GGUFFile(tmp_path / "t.gguf").vocabulary()


class TestRules:
    @pytest.mark.parametrize(("split", "added", "prompted"), [
        ("gpt-2", None, False), ("smollm", None, False), ("qwen2", None, False),
        ("llama-bpe", None, True), ("tekken", None, True), ("falcon3", None, True),
        ("smollm", True, True), ("llama-bpe", False, False)])
    def test_begin_of_bytes(self, tmp_path, split, added, prompted):
        words = read(tmp_path, BYTES | {"pre": split, "add_bos_token": added, "bos_token_id": 259})
        assert begin(words, [5]) == ([259, 5] if prompted else [5])

    def test_begin_of_the_shipped_model(self):
        """Its file does not say that documents begin with the end of another one."""
        words = GGUFFile(DEFAULT_MODEL).vocabulary()
        assert begin(words, [5]) == [words.end_of_document, 5]

    @pytest.mark.parametrize("added", [None, True, False])
    def test_pieces(self, tmp_path, added):
        """Begin and end of SentencePiece's Llama need no key."""
        words = read(tmp_path, PIECES | {"add_bos_token": added})
        assert begin(words, [5]) == ([5] if added is False else [1, 5])
        assert (words.end_of_document, words.ends, words.controls) == (2, (), (0, 1))

    def test_ends(self, tmp_path):
        """Those of the keys, and those whose text says so, but for what merges make of text."""
        words = read(tmp_path, BYTES | {"eot_token_id": 40, "eom_token_id": 41})
        assert endings(words) == {0, 40, 41, 259}
        keys = BYTES | {"tokens": [*BYTES["tokens"], "</", "</s", "</s>", "<|end|>"],
                        "merges": ["< /", "</ s", "</s >"], "token_type": [3] + [1] * 263}
        words = read(tmp_path, keys | {"tokens": keys["tokens"]})
        assert endings(words) == {0, 259, 263}

    def test_end_that_no_key_names(self, tmp_path):
        assert read(tmp_path, BYTES | {"eos_token_id": None}).end_of_document == 0

    def test_no_end(self, tmp_path):
        keys = BYTES | {"eos_token_id": None, "tokens": ["A0", *byte_symbols(), "th", "the", "B0"]}
        with pytest.raises(ModelFileError, match=r"key tokenizer.ggml.eos_token_id must be a "
                                                 r"token below 260, not None"):
            read(tmp_path, keys)

    def test_no_pre_tokenizer(self, tmp_path, monkeypatch):
        """BitNet b1.58 2B4T is known by the number of its tokens."""
        assert vocabulary_file._LLAMA3_TOKENS == 128_256
        assert read(tmp_path, BYTES | {"pre": None}).split == "default"
        monkeypatch.setattr(vocabulary_file, "_LLAMA3_TOKENS", 260)
        assert read(tmp_path, BYTES | {"pre": None}).split == "llama-bpe"

    def test_unknown_pre_tokenizer(self, tmp_path):
        with pytest.raises(ModelFileError, match=r"key tokenizer.ggml.pre: pre-tokenizer 'kimi-k2' "
                                                 r"is not known; known are default, gpt-2, "):
            read(tmp_path, BYTES | {"pre": "kimi-k2"})

    @pytest.mark.parametrize(("name", "stripped"), [("Phi 3", ()), ("Phi-3 mini", (259,))])
    def test_phi3(self, tmp_path, name, stripped):
        assert read(tmp_path, BYTES, name).stripped == stripped

    def test_template(self, tmp_path):
        assert read(tmp_path, BYTES | {"chat_template": "{{ x }}"}).template == "{{ x }}"
        with pytest.raises(ModelFileError, match="must have at most 262144 characters, not 262145"):
            read(tmp_path, BYTES | {"chat_template": "x" * 262_145})

    def test_written_again(self, tmp_path):
        """What is read from a file is written to another."""
        words = read(tmp_path, BYTES | {
            "token_type": [3] + [1] * 257 + [4, 3], "eot_token_id": 40, "bos_token_id": 259,
            "add_bos_token": True, "chat_template": "{{ x }}"})
        writer = gguf.GGUFWriter(str(tmp_path / "again.gguf"), "llama")
        write_vocabulary(writer, words)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert GGUFFile(tmp_path / "again.gguf").vocabulary() == words


def test_nasty_strings():
    texts = nasty_strings(["<|im_end|>"])
    assert len(texts) == 500
    assert len(set(texts)) > 480
    assert sum("<|im_end|>" in text for text in texts) > 50
    assert texts == nasty_strings(["<|im_end|>"])
    assert all(text == text.encode().decode() for text in texts)


def test_publishers_file(tmp_path):
    """A converted ``tokenizer.json`` gives the tokens that it gives itself."""
    keys = trained_keys(["the thing that the others thought\n"] * 9, "qwen2", 300)
    normal = [token for token, kind in zip(keys["tokens"], keys["token_type"], strict=True)
              if kind == 1]
    model = {"type": "BPE", "vocab": {token: index for index, token in enumerate(normal)},
             "merges": keys["merges"]}
    tokenizer = BPETokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": None, "post_processor": None,
        "decoder": None, "model": model}))
    tokenizer.pre_tokenizer = SPLITS["qwen2"].pre_tokenizer()
    for token, kind in zip(keys["tokens"], keys["token_type"], strict=True):
        if kind != 1:
            (tokenizer.add_special_tokens if kind == 3 else tokenizer.add_tokens)(
                [AddedToken(token, normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    words = read(tmp_path, publisher_keys(tmp_path, "qwen2"))
    ours, judge = open_tokenizer(words), publisher_judge(tmp_path)
    texts = nasty_strings([words.tokens[index] for index in (*words.controls, *words.user)], 300)
    assert [text for text in texts
            if ours.encode(text, special=True) != list(judge.tokens(text))] == []


# llama.cpp.

@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None or
                    importlib.util.find_spec("sentencepiece") is None,
                    reason="the judges are not here: pip install -e '.[judges]'")
class TestJudges:
    """docs/results/tokenizers.json has published vocabularies as well."""

    @pytest.fixture
    def texts(self):
        return [text for part in read_corpus(CORPUS).values() for text in part]

    @pytest.mark.parametrize("split", ["default", "gpt-2", "smollm", "falcon", "llama-bpe", "qwen2",
                                       "qwen35", "deepseek-llm", "deepseek-coder", "deepseek-v3"])
    def test_bytes(self, tmp_path, texts, split):
        write_tokenizer(tmp_path / "t.gguf", trained_keys(texts, split))
        for row in compare_tokens(tmp_path / "t.gguf", None, 500):
            assert (row["differ"], row["refused"]) == (0, 0), row

    def test_pieces(self, tmp_path, texts):
        path = trained_pieces(texts, tmp_path)
        write_tokenizer(tmp_path / "t.gguf", publisher_keys(path, "pieces"))
        rows = list(compare_tokens(tmp_path / "t.gguf", publisher_judge(path), 500))
        assert [row["judge"] for row in rows] == ["llama.cpp", "llama.cpp", "sentencepiece"]
        assert [row["differ"] for row in rows] == [0, 0, 0]

    def test_a_fault_is_seen(self, tmp_path, texts, monkeypatch):
        """Words of another pre-tokenizer differ."""
        write_tokenizer(tmp_path / "t.gguf", trained_keys(texts, "llama-bpe"))
        monkeypatch.setitem(SPLITS, "llama-bpe", SPLITS["gpt-2"])
        assert next(compare_tokens(tmp_path / "t.gguf", None, 500))["differ"] > 20


class TestCheckpoint:
    """Files beside a ``tokenizer.json``."""

    @staticmethod
    def read(folder, **files):
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return read_checkpoint_dialogue(
            folder, lambda name: json.loads((folder / name).read_text()), 300)

    def test_nothing(self, tmp_path):
        assert self.read(tmp_path) == {"ends": (), "template": None, "prompted": True,
                                       "opened": True}

    @pytest.mark.parametrize(("settings", "prompted"), [
        ({"add_bos_token": False}, False), ({"add_bos_token": True}, True),
        ({"tokenizer_class": "Qwen2TokenizerFast"}, False),
        ({"tokenizer_class": "GPT2Tokenizer"}, False),
        ({"tokenizer_class": "LlamaTokenizer"}, True)])
    def test_begin(self, tmp_path, settings, prompted):
        assert self.read(tmp_path, tokenizer_config=settings)["prompted"] is prompted
        found = self.read(tmp_path, tokenizer_config={"bos_token": None})
        assert not found["opened"]

    @pytest.mark.parametrize("begins", [False, True])
    def test_begin_by_the_file(self, tmp_path, begins):
        tokenizer = BPETokenizer(models.BPE(vocab={"<s>": 0, "a": 1}, merges=[]))
        if begins:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 0)])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        assert self.read(tmp_path, tokenizer_config=settings)["prompted"] is begins

    def test_ends(self, tmp_path):
        added = {"7": {"content": "<turn>"}, "8": {"content": "<|im_end|>"},
                 "9": {"content": "<|im_start|>"}, "301": {"content": "<eos>"}}
        found = self.read(tmp_path, generation_config={"eos_token_id": [5, 400]},
                          tokenizer_config={"added_tokens_decoder": added, "eos_token": {
                              "content": "<turn>"}})
        assert found["ends"] == (5, 7, 8)
        assert self.read(tmp_path, generation_config={"eos_token_id": 5},
                         tokenizer_config={})["ends"] == (5,)

    def test_template(self, tmp_path):
        assert self.read(tmp_path, tokenizer_config={"chat_template": "a"})["template"] == "a"
        several = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "c"}]
        assert self.read(tmp_path, tokenizer_config={"chat_template": several})["template"] == "c"
        (tmp_path / "chat_template.jinja").write_text("d")
        assert self.read(tmp_path)["template"] == "d"

    @pytest.mark.parametrize(("template", "said"), [
        (5, "key chat_template must be a text, not int"),
        ("x" * 262_145, "must have at most 262144 characters, not 262145")])
    def test_refused(self, tmp_path, template, said):
        with pytest.raises(ModelFileError, match=said):
            self.read(tmp_path, tokenizer_config={"chat_template": template})
