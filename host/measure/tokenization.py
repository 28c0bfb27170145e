"""Tokens of nasty strings, beside those of judges: llama.cpp and the publishers' own tokenizers.

Tokenizers come from their publishers' files (``tokenizer.json``, a SentencePiece model, a
``tekken.json`` or a GGUF file), or are trained here on a text for the ways of cutting words that no
such file is at hand for. Each is written to a GGUF file as converters do, which is read here and by
llama.cpp.
"""

import base64
import dataclasses
import functools
import json
import random
import time
import unicodedata
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jinja2 import TemplateError
from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as BPETokenizer

from host.errors import UserError
from host.files.gguf import GGUFFile
from host.text.chat import ChatTemplate
from host.text.splits import SPLITS
from host.text.tokenizer import TextError, byte_symbols, open_tokenizer
from host.text.vocabulary import Vocabulary, begin, endings

__all__ = ["Keys", "LlamaCpp", "Judge", "nasty_strings", "publisher_keys", "publisher_judge",
           "trained_keys", "trained_pieces", "compare_dialogues", "compare_tokens",
           "write_tokenizer"]


@dataclasses.dataclass(frozen=True)
class Judge:
    """Another tokenizer.

    Attributes
    ----------
    name : str
    special : bool
        Whether special tokens in a text count as such, as in a prompt.
    tokens : callable
        Takes a text.
    """

    name: str
    special: bool
    tokens: Callable[[str], Sequence[int]]


Keys = dict[str, Any]

_CONTROL, _USER, _BYTE, _NORMAL = (int(gguf.TokenType[name]) for name in (
    "CONTROL", "USER_DEFINED", "BYTE", "NORMAL"))
_SPACE = "\u2581"

#: Pieces of which nasty strings are made.
_PIECES = (
    "Hello", "world", "the", "I'm", "WE'LL", "you've", "it\u2019s", "'s", "'S", "'re", "'ll'",
    "''", "don't", "CamelCase", "camelCase", "HTTPServer", "\u00c9cole", "NA\u00cfVE",
    "na\u00efve", "stra\u00dfe", "\u01c5ungla", "\u0130stanbul", "1", "12", "123", "1234",
    "12345678", "3.14159", "1,000,000", "0x7F", "1e-9", "\u0663\u0664\u0665", "\u0967\u0968\u0969",
    "\u2160\u2161", "\u00bd", "\u00b2", "\u2460", "\uff11\uff12", " ", "  ", "   ", "\t", "\n",
    "\n\n", "\r\n", " \n ", "\n  ", "\t\t", "        ", "\u00a0", "\u2003", "\u3000", "\u200b",
    "\u200d", "\u2028", "\u0085", "\x0b", "\x0c", "\ufeff", "\u00ad", "!", "?!", "...", "\u2026",
    "--", "\u2014", "::", "=>", "!=", "&&", "||", "{}", "[]", "()", "<>", "</", "/*", "*/", "//",
    "\\", "\\n", "`", "~", "^", "$", "$x", "#", "@", "%", "+", "_", "__init__", "a_b", "a/b",
    "http://a.b/c?d=e&f#g", "user@example.com", "<|", "|>", "<s", "s>", "<0x41>", "<0xZZ>",
    "\u2581", "\u2581the", "\u0120", "\u010a", "\u0120the", "\u4f60\u597d", "\u4e16\u754c",
    "\u65e5\u672c\u8a9e", "\u30c6\u30b9\u30c8", "\u3072\u3089", "\u30fb", "\u3002", "\uff0c",
    "\u300c\u5f15\u300d", "\ud55c\uad6d\uc5b4", "\u3131",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439", "\u041c\u043e\u0441\u043a\u0432\u0430",
    "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1", "\u05e9\u05dc\u05d5\u05dd", "\u05c1",
    "\u0645\u0631\u062d\u0628\u0627", "\u064e\u0651", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u1e00", "\ua728", "e\u0301", "A\u030a", "\u212b",
    "\u1e9b\u0323", "\ufb01", "\u1112\u1161\u11ab", "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd",
    "\u2764\ufe0f", "\u2122", "\u20ac", "\u00a3", "\u2211", "\u221e", "\U0001d54f", "\U00010400",
    "\U00020000", "\ue000", "\U000f0000", "def f(x):\n    return x\n",
    "for (int i = 0; i < n; ++i) {\n\t", "if x:\n\n\n", "SELECT * FROM t;", "aaaaaaaaaaaaaaaa",
    "!!!!!!!!!!!!", "abcabcabc", "zzyzx", "\x01", "\x1b[31m", "\x7f", "\0")


def nasty_strings(special: Sequence[str], count: int = 500, seed: int = 18) -> list[str]:
    """Make strings that tokenizers get wrong: each piece alone, then mixtures.

    Parameters
    ----------
    special : sequence of str
        Texts of special tokens, which every third string has.
    count, seed : int
    """
    draw = random.Random(seed)
    texts = ["", *_PIECES, *special[:100]][:count]
    while len(texts) < count:
        parts = draw.choices(_PIECES, k=draw.randint(2, 12))
        if special and len(texts) % 3 == 0:
            for _ in range(draw.randint(1, 3)):
                name = draw.choice(special)
                # Some are cut off.
                parts.insert(draw.randint(0, len(parts)),
                             name if draw.random() < 0.8 else name[:-1])
        texts.append(draw.choice(("", " ")).join(parts))
    return texts


# Keys of GGUF files.

def _named(value: object) -> str | None:
    """Return the text of a token as a configuration has it."""
    return value.get("content") if isinstance(value, dict) else value  # type: ignore[return-value]


def _json_keys(folder: Path, split: str) -> Keys:
    """Return the keys for a ``tokenizer.json`` and the configuration beside it."""
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {entry["id"]: entry for entry in found["added_tokens"]}
    ids = found["model"]["vocab"] | {entry["content"]: index for index, entry in added.items()}
    tokens = [f"[PAD{index}]" for index in range(max(ids.values()) + 1)]
    for text, index in ids.items():
        tokens[index] = text
    kinds = [(_CONTROL if added[index]["special"] else _USER) if index in added else _NORMAL
             for index in range(len(tokens))]
    merges = [merge if isinstance(merge, str) else " ".join(merge)
              for merge in found["model"]["merges"]]
    keys: Keys = {"tokens": tokens}
    if split == "pieces":
        # The score of a piece is its place among the merges.
        scores: dict[str, float] = {}
        for rank, merge in enumerate(merges):
            scores.setdefault(merge.replace(" ", ""), -float(rank))
        keys |= {"model": "llama", "scores": [scores.get(token, -1e6) for token in tokens]}
        kinds = [_BYTE if kind == _NORMAL and len(token) == 6 and token.startswith("<0x") else kind
                 for token, kind in zip(tokens, kinds, strict=True)]
        first = (found["normalizer"] or {}).get("normalizers", [{}])[0]
        keys["add_space_prefix"] = first.get("type") == "Prepend"
    else:
        keys |= {"model": "gpt2", "pre": split, "merges": merges}
    for name in ("bos", "eos"):
        token = _named(settings.get(f"{name}_token"))
        if token is not None:
            keys[f"{name}_token_id"] = ids[token]
    if "add_bos_token" in settings:
        keys["add_bos_token"] = settings["add_bos_token"]
    return keys | {"token_type": kinds, "chat_template": settings.get("chat_template")}


def _piece_keys(path: Path) -> Keys:
    """Return the keys for a SentencePiece model."""
    import sentencepiece
    model = sentencepiece.SentencePieceProcessor(str(path))
    count = model.vocab_size()
    kinds = [int(gguf.TokenType.UNKNOWN) if model.is_unknown(index) else
             _CONTROL if model.is_control(index) else _BYTE if model.is_byte(index) else _NORMAL
             for index in range(count)]
    return {"model": "llama", "tokens": [model.id_to_piece(index) for index in range(count)],
            "scores": [model.get_score(index) for index in range(count)], "token_type": kinds,
            "bos_token_id": model.bos_id(), "eos_token_id": model.eos_id()}


def _tekken_keys(path: Path) -> Keys:
    """Return the keys for a ``tekken.json``: ranked byte strings, behind the special tokens."""
    found = json.loads(path.read_text(encoding="utf-8"))
    settings = found["config"]
    first = settings["default_num_special_tokens"]
    names = found.get("special_tokens") or [
        {"rank": rank, "token_str": text} for rank, text in enumerate(("<unk>", "<s>", "</s>"))]
    special = {entry["rank"]: entry["token_str"] for entry in names}
    ranked = [base64.b64decode(entry["token_bytes"]) for entry
              in found["vocab"][:settings["default_vocab_size"] - first]]
    symbols = byte_symbols()
    ranks = {word: rank for rank, word in enumerate(ranked)}
    merges = []
    for word in ranked:
        if len(word) > 1:
            merges.append(" ".join("".join(symbols[byte] for byte in part)
                                   for part in _last_parts(word, ranks)))
    return {"model": "gpt2", "pre": "tekken", "merges": merges, "bos_token_id": 1,
            "eos_token_id": 2,
            "tokens": [*(special.get(rank, f"<SPECIAL_{rank}>") for rank in range(first)),
                       *("".join(symbols[byte] for byte in word) for word in ranked)],
            "token_type": [_CONTROL] * first + [_NORMAL] * len(ranked)}


def _last_parts(word: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Return the two parts that a word is merged of: those left when all merges before it ran."""
    parts = [word[index:index + 1] for index in range(len(word))]
    while len(parts) > 2:
        _, place = min((ranks.get(parts[index] + parts[index + 1], len(ranks)), index)
                          for index in range(len(parts) - 1))
        parts[place:place + 2] = [parts[place] + parts[place + 1]]
    return parts


def publisher_keys(path: Path, split: str) -> Keys:
    """Return the keys of a GGUF file for a publisher's tokenizer, without their prefix.

    Parameters
    ----------
    path : Path
        A folder with a ``tokenizer.json``, or a file: ``*.gguf``, ``tekken*.json``, or a
        SentencePiece model.
    split : str
        Name of the pre-tokenizer, or ``pieces`` for SentencePiece.
    """
    if path.is_dir():
        return _json_keys(path, split)
    if path.suffix == ".gguf":
        file = GGUFFile(path)
        prefix = "tokenizer."
        return {key.removeprefix(prefix).removeprefix("ggml."): file.value(key)
                for key in file.keys(prefix)}
    return _tekken_keys(path) if path.suffix == ".json" else _piece_keys(path)


def publisher_judge(path: Path) -> Judge | None:
    """Return the publisher's own tokenizer, as what the publisher runs it with."""
    if path.is_dir():
        file = BPETokenizer.from_file(str(path / "tokenizer.json"))
        return Judge("tokenizers", True,
                     lambda text: file.encode(text, add_special_tokens=False).ids)
    if path.suffix == ".json":
        import tiktoken
        found = json.loads(path.read_text(encoding="utf-8"))
        settings, keys = found["config"], _tekken_keys(path)
        first = settings["default_num_special_tokens"]
        coding = tiktoken.Encoding("tekken", pat_str=settings["pattern"], mergeable_ranks={
            base64.b64decode(entry["token_bytes"]): entry["rank"] + first
            for entry in found["vocab"][:settings["default_vocab_size"] - first]},
            special_tokens=dict(zip(keys["tokens"][:first], range(first), strict=True)))
        return Judge("tiktoken", True, lambda text: coding.encode(text, allowed_special="all"))
    if path.suffix == ".gguf":
        return None
    import sentencepiece
    model = sentencepiece.SentencePieceProcessor(str(path))
    return Judge("sentencepiece", False, model.encode)


def trained_keys(texts: Sequence[str], split: str, vocab: int = 2000) -> Keys:
    """Train a byte-level BPE whose words are cut in one way, with special and added tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = ["<tool_call>", "</tool_call>", "[X]", "[X][Y]", "  "]
    tokenizer = BPETokenizer(models.BPE())
    tokenizer.pre_tokenizer = SPLITS[split].pre_tokenizer()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in added])
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    model = json.loads(tokenizer.to_str())["model"]
    kinds = [_CONTROL if token in special else _USER if token in added else _NORMAL
             for token in tokens]
    return {"model": "gpt2", "pre": split, "tokens": tokens, "token_type": kinds,
            "merges": [" ".join(merge) for merge in model["merges"]],
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}


def trained_pieces(texts: Sequence[str], folder: Path, vocab: int = 2000) -> Path:
    """Train a SentencePiece model with byte fallback, and return its file."""
    import sentencepiece
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in texts for line in text.splitlines()),
        model_prefix=str(folder / "pieces"), vocab_size=vocab, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2)
    return folder / "pieces.model"


def write_tokenizer(path: Path, keys: Keys, name: str = "tokenizer") -> None:
    """Write a Llama of one small layer that has a tokenizer."""
    width, ffn, vocab = 32, 32, len(keys["tokens"])
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(name)
    writer.add_block_count(1)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    for key, value in keys.items():
        if value is not None:
            place = f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}"
            if isinstance(value, list):
                writer.add_array(place, value)
            elif isinstance(value, bool):
                writer.add_bool(place, value)
            elif isinstance(value, int):
                writer.add_uint32(place, value)
            else:
                writer.add_string(place, value)
    ones = np.ones(width, np.float32)
    tensors: dict[str, np.ndarray] = {"token_embd": np.zeros((vocab, width), np.float16),
                                      "output_norm": ones, "blk.0.attn_norm": ones,
                                      "blk.0.ffn_norm": ones}
    tensors |= {f"blk.0.{part}": np.zeros((width, width), np.float16) for part in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")}
    for tensor, values in tensors.items():
        writer.add_tensor(f"{tensor}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Judges.

class LlamaCpp:
    """llama.cpp with a model file, by its server on this machine.

    Parameters
    ----------
    path : Path
        Of the GGUF file.

    Raises
    ------
    UserError
        If the package ``xllamacpp`` is not installed.
    """

    def __init__(self, path: Path):
        try:
            import xllamacpp
        except ModuleNotFoundError:
            raise UserError("llama.cpp is not here: pip install -e '.[judges]'") from None
        options = xllamacpp.CommonParams()
        options.model.path = str(path)
        options.n_ctx, options.n_parallel, options.warmup, options.verbosity = 64, 1, False, -1
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(options)

    def post(self, place: str, request: Mapping[str, object]) -> dict[str, Any]:
        """Send a request, and return the answer."""
        answer = urllib.request.urlopen(urllib.request.Request(
            f"{self._server.listening_address}/{place}", json.dumps(request).encode(),
            {"Content-Type": "application/json"}), timeout=60)
        return json.load(answer)

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a prompt, or of a text whose special tokens are text."""
        return self.post("tokenize", {"content": text, "add_special": special,
                                      "parse_special": special})["tokens"]


#: Dialogues whose texts by a chat template are compared: roles and messages.
_DIALOGUES = tuple([{"role": role, "content": content} for role, content in messages]
                   for messages in (
    (("user", "Hi"),), (("system", "Be brief."), ("user", " Is <b> & 'c' \"d\"?\n")),
    (("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nYes"), ("user", "\u4f60\u597d")),
    (("system", ""), ("user", "1"), ("assistant", "2 "), ("user", "3"), ("assistant", "4"),
     ("user", "5"))))


def compare_dialogues(source: str, tokens: Mapping[str, str]) -> dict[str, object]:
    """Compare the texts that a chat template makes with those of ``transformers``, as a row.

    Parameters
    ----------
    source : str
        The template.
    tokens : mapping of str to str
        Texts of the tokens that it names.
    """
    from transformers.utils import chat_template_utils
    judge: Any = chat_template_utils.render_jinja_template
    template = ChatTemplate(source, tokens)

    def ours(messages: list[dict[str, str]], answer: bool) -> str:
        return template.render(messages, answer=answer)

    def theirs(messages: list[dict[str, str]], answer: bool) -> str:
        return judge([messages], chat_template=source, add_generation_prompt=answer,
                     **tokens)[0][0]

    differ = count = 0
    for messages in _DIALOGUES:
        for answer in (False, True):
            texts: list[str | None] = []
            for render in (ours, theirs):
                try:
                    texts.append(render(messages, answer))
                except (TextError, TemplateError):
                    texts.append(None)      # refused
            differ += texts[0] != texts[1]
            count += 1
    return {"judge": "transformers", "read_as": "dialogue", "strings": count, "differ": differ,
            "refused": 0}


def compare_tokens(path: Path, publisher: Judge | None, count: int,
                   ) -> Iterator[dict[str, object]]:
    """Compare the tokens of nasty strings with each judge's.

    Parameters
    ----------
    path : Path
        Of a GGUF file.
    publisher : Judge, optional
        The publisher's tokenizer.
    count : int
        Number of strings.

    Yields
    ------
    dict
        For each judge: ``judge``, ``read_as`` (prompt, or text without special tokens),
        ``strings``, ``differ``, ``refused`` (strings with a byte that the vocabulary has no token
        for), ``load_seconds`` (of the CPU, for the vocabulary and its tokenizer), and ``example``
        (the shortest string that differs).
    """
    began = time.process_time()
    words = GGUFFile(path).vocabulary()
    tokenizer = open_tokenizer(words)
    seconds = round(time.process_time() - began, 2)
    marked = sorted({*words.user, *endings(words), *words.controls})
    special = [words.tokens[index] for index in random.Random(count).sample(
        marked, min(len(marked), 100))]
    texts = nasty_strings(special, count)
    server, name = LlamaCpp(path), "llama.cpp"
    form: Callable[[str], str] = str
    if isinstance(words, Vocabulary) and SPLITS[words.split].composed:
        # llama.cpp composes no characters, as the publisher does: it gets them composed.
        name, form = "llama.cpp, given NFC", functools.partial(unicodedata.normalize, "NFC")
    judges = [Judge(name, special, functools.partial(server.tokens, special=special))
              for special in (True, False)]
    for judge in [*judges, *([publisher] if publisher else [])]:
        differ, refused = [], 0
        for text in texts:
            try:
                tokens = tokenizer.encode(text, special=judge.special)
            except TextError:
                refused += 1
                continue
            if judge is judges[0] and (text or words.prompted):
                tokens = begin(words, tokens)
            given = form(text) if judge in judges else text
            if tokens != list(judge.tokens(given)):
                differ.append(text)
        yield {"judge": judge.name, "read_as": "prompt" if judge.special else "text",
               "strings": len(texts), "differ": len(differ), "refused": refused,
               "load_seconds": seconds, "example": min(differ, key=len, default=None)}
