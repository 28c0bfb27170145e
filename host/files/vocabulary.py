"""The tokenizer of a GGUF file, and what a checkpoint says of dialogues.

What the keys of a GGUF file do not say is as in llama.cpp.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypedDict

import gguf
from tokenizers import Tokenizer

from host.files.errors import ModelFileError
from host.text.splits import SPLITS
from host.text.vocabulary import (
    END_TEXTS,
    LONGEST_TEMPLATE,
    PieceVocabulary,
    Vocabulary,
    wrong_merges,
    wrong_tokens,
)

__all__ = ["read_byte_vocabulary", "read_checkpoint_dialogue", "read_vocabulary",
           "write_vocabulary"]

# Tokens that stand for no text. Unused ones are as good as normal ones, which no text has.
_SILENT = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)

# Tokens of SentencePiece's Llama, where a file names none.
_START, _END = 1, 2

# Architecture of this project's own models: documents begin with the end of another one, which
# their files do not say.
_OWN = "mmfreelm"

# Tokens of Llama 3's vocabulary. Of the files without a pre-tokenizer, BitNet b1.58 2B4T has it.
_LLAMA3_TOKENS = 128_256


class _Keys(Protocol):
    """What is needed of :class:`host.files.gguf.GGUFFile`."""

    def error(self, message: str) -> ModelFileError: ...

    def value(self, key: str) -> Any: ...

    def strings(self, key: str) -> tuple[str, ...]: ...


class _Dialogue(TypedDict):
    """Fields of :class:`host.text.vocabulary.SpecialTokens` that dialogues need."""

    ends: tuple[int, ...]
    template: str | None


class _Checkpoint(_Dialogue):
    """Fields of :class:`host.text.vocabulary.TokenizerFile`."""

    prompted: bool
    opened: bool


class _Special(_Dialogue):
    """All fields of that class, and ``controls``."""

    controls: tuple[int, ...]
    user: tuple[int, ...]
    stripped: tuple[int, ...]
    opened: bool


def read_vocabulary(file: _Keys, vocab: int | None = None) -> Vocabulary | PieceVocabulary:
    """Read a tokenizer, of ``vocab`` tokens if that is given.

    Raises
    ------
    ModelFileError
        If a key is missing or not as it must be, or the pre-tokenizer is not known.
    """
    kind = _kind(file, "gpt2", "llama")
    pieces = kind == "llama"
    tokens = file.strings("tokenizer.ggml.tokens")
    if vocab is not None and len(tokens) != vocab:
        raise file.error(f"key tokenizer.ggml.tokens must hold {vocab} tokens, not {len(tokens)}")
    wrong = wrong_tokens(tokens)
    if wrong:
        raise file.error(f"key tokenizer.ggml.tokens {wrong}")
    split = None if pieces else _split(file, len(tokens))
    merges = () if pieces else file.strings("tokenizer.ggml.merges")
    types = _types(file, len(tokens))
    ends = _ends(file, tokens, types, merges)
    end = _token(file, "eos", len(tokens), ends[0] if ends else _END if pieces else None)
    # Files of older converters, ours among them, have no begin but the end of another document.
    start = _token(file, "bos", len(tokens), _START if pieces else end)
    special = _special(file, tokens, types, ends, end)
    prompted = file.value("tokenizer.ggml.add_bos_token")
    if split is None:
        space = file.value("tokenizer.ggml.add_space_prefix") is not False
        return PieceVocabulary(tokens, _scores(file, len(tokens)), start, end,
                               prompted=prompted is not False, space=space, **special)
    wrong = wrong_merges(tokens, merges, {end, *special["controls"]})
    if wrong:
        raise file.error(f"key tokenizer.ggml.merges {wrong}")
    if prompted is None:
        prompted = SPLITS[split].prompted or file.value("general.architecture") == _OWN
    return Vocabulary(tokens, merges, end, None if start == end else start,
                      prompted=bool(prompted), split=split, **special)


def read_byte_vocabulary(file: _Keys, vocab: int) -> Vocabulary:
    """Read a tokenizer, which must be a byte-level BPE of ``vocab`` tokens."""
    _kind(file, "gpt2")
    found = read_vocabulary(file, vocab)
    assert isinstance(found, Vocabulary)
    return found


def _kind(file: _Keys, *allowed: str) -> str:
    key = "tokenizer.ggml.model"
    kind = file.value(key)
    if kind is None:
        raise file.error(f"tokenizer is missing: key {key}")
    if kind not in allowed:
        raise file.error(f"key {key} must be {' or '.join(map(repr, allowed))}, not {kind!r}")
    return kind


def _split(file: _Keys, vocab: int) -> str:
    """Return how text is cut into words."""
    key = "tokenizer.ggml.pre"
    split = file.value(key)
    if split is None:
        split = "llama-bpe" if vocab == _LLAMA3_TOKENS else "default"
    if not isinstance(split, str) or split not in SPLITS:
        raise file.error(f"key {key}: pre-tokenizer {split!r} is not known; known are "
                         f"{', '.join(SPLITS)}"[:1000])
    return split


def _token(file: _Keys, name: str, vocab: int, default: int | None = None) -> int:
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.value(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab:
        raise file.error(f"key {key} must be a token below {vocab}, not {value!r}")
    return value


def _types(file: _Keys, vocab: int) -> list[int]:
    """Return the type of each token, or nothing where the file has none."""
    key = "tokenizer.ggml.token_type"
    types = file.value(key)
    if types is None:
        return []
    if not isinstance(types, list) or len(types) != vocab or not all(
            type(kind) is int for kind in types):
        raise file.error(f"key {key} must be an array of {vocab} integers")
    return types


def _ends(file: _Keys, tokens: tuple[str, ...], types: list[int],
          merges: tuple[str, ...]) -> list[int]:
    """List the tokens that end an answer: those of the keys, then those with such a text.

    A normal token that merges make, as ``</s>`` of Qwen, is a piece of text like others.
    """
    named = [_token(file, name, len(tokens)) for name in ("eos", "eot", "eom")
             if file.value(f"tokenizer.ggml.{name}_token_id") is not None]
    found = [token for token, text in enumerate(tokens) if text in END_TEXTS]
    normal = {tokens[token] for token in found if types and types[token] == gguf.TokenType.NORMAL}
    made = {text for merge in merges if (text := merge.replace(" ", "")) in normal
            } if normal else set()
    return list(dict.fromkeys([*named, *(token for token in found if tokens[token] not in made)]))


def _special(file: _Keys, tokens: tuple[str, ...], types: list[int], ends: list[int],
             end: int) -> _Special:
    """Collect what the file says of special tokens."""
    controls = tuple(token for token, kind in enumerate(types) if kind in _SILENT and token != end)
    user = tuple(token for token, kind in enumerate(types)
                 if kind == gguf.TokenType.USER_DEFINED)
    stripped: tuple[int, ...] = ()
    name = file.value("general.name")
    if isinstance(name, str) and ("phi-3" in name.lower() or "phi3" in name.lower()):
        # Phi-3 was trained so, which its files do not say.
        stripped = tuple(token for token in (*controls, *user, end)
                         if tokens[token] not in ("<unk>", "<s>", "<|endoftext|>"))
    return {"controls": controls, "user": user, "stripped": stripped,
            "ends": tuple(token for token in ends if token != end),
            "opened": file.value("tokenizer.ggml.bos_token_id") is not None,
            "template": _template(file)}


def _template(file: _Keys) -> str | None:
    """Return the chat template."""
    key = "tokenizer.chat_template"
    template = file.value(key)
    if template is not None and not isinstance(template, str):
        raise file.error(f"key {key} must be a string, not {template!r}"[:300])
    if template is not None and len(template) > LONGEST_TEMPLATE:
        raise file.error(f"key {key} must have at most {LONGEST_TEMPLATE} characters, "
                         f"not {len(template)}")
    return template


def _scores(file: _Keys, vocab: int) -> tuple[float, ...]:
    """Return the score of each token."""
    key = "tokenizer.ggml.scores"
    scores = file.value(key)
    if not isinstance(scores, list) or len(scores) != vocab or not all(
            isinstance(score, float) and math.isfinite(score) for score in scores):
        raise file.error(f"key {key} must be an array of {vocab} finite numbers")
    return tuple(scores)


# Checkpoints.

def read_checkpoint_dialogue(folder: Path, read: Callable[[str], dict[str, Any]],
                             vocab: int) -> _Checkpoint:
    """Read what the files beside a checkpoint's ``tokenizer.json`` say of prompts and dialogues.

    Parameters
    ----------
    folder : Path
        Of the checkpoint.
    read : callable
        Takes a file's name, and returns the object in it.
    vocab : int
        Tokens that the model has.

    Returns
    -------
    dict
        Fields of :class:`host.text.vocabulary.TokenizerFile`. ``ends`` are the tokens of
        ``generation_config.json``, the one that ``tokenizer_config.json`` calls its end, and those
        whose text says so; ``template`` is that of the latter file, or of ``chat_template.jinja``;
        ``prompted`` is as in ``transformers``.
    """
    def optional(name: str) -> dict[str, Any]:
        return read(name) if (folder / name).is_file() else {}

    settings = optional("tokenizer_config.json")
    named = optional("generation_config.json").get("eos_token_id")
    ends = named if isinstance(named, list) else [named]
    added, last = settings.get("added_tokens_decoder"), settings.get("eos_token")
    if isinstance(last, dict):
        last = last.get("content")
    for index, entry in added.items() if isinstance(added, dict) else ():
        text = entry.get("content") if isinstance(entry, dict) else None
        if text is not None and index.isdecimal() and (text == last or text in END_TEXTS):
            ends.append(int(index))
    template = settings.get("chat_template")
    if isinstance(template, list):      # several, by name
        template = next((entry.get("template") for entry in template
                         if isinstance(entry, dict) and entry.get("name") == "default"), None)
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{path}: {error}") from None
    if template is not None and not isinstance(template, str):
        raise ModelFileError(f"{folder / 'tokenizer_config.json'}: key chat_template must be a "
                             f"text, not {type(template).__name__}")
    if template is not None and len(template) > LONGEST_TEMPLATE:
        raise ModelFileError(f"{folder}: the chat template must have at most {LONGEST_TEMPLATE} "
                             f"characters, not {len(template)}")
    return {"template": template, "prompted": _prompted(folder, settings),
            "opened": not settings or settings.get("bos_token") is not None,
            "ends": tuple(dict.fromkeys(
                end for end in ends if type(end) is int and 0 <= end < vocab))}


def _prompted(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a prompt begins with the token that a document begins with."""
    added = settings.get("add_bos_token")
    if isinstance(added, bool):
        return added
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    if kind in ("GPT2Tokenizer", "Qwen2Tokenizer"):
        return False
    if kind not in ("PreTrainedTokenizer", "TokenizersBackend"):
        return True
    # These classes do what the tokenizer's file says.
    try:
        return bool(Tokenizer.from_file(str(folder / "tokenizer.json")).encode("").ids)
    except Exception:       # what the package raises; whoever needs the file says what is wrong
        return True


# Writing.

def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary | PieceVocabulary) -> None:
    """Write the keys from which :func:`read_vocabulary` reads the same tokenizer."""
    if isinstance(vocabulary, Vocabulary):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(vocabulary.split)
        writer.add_token_merges(list(vocabulary.merges))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.space)
    writer.add_token_list(list(vocabulary.tokens))
    types = dict.fromkeys(vocabulary.user, gguf.TokenType.USER_DEFINED)
    types |= dict.fromkeys((vocabulary.end_of_document, *vocabulary.controls),
                           gguf.TokenType.CONTROL)
    writer.add_token_types([types.get(token, gguf.TokenType.NORMAL)
                            for token in range(vocabulary.size)])
    if vocabulary.template is not None:
        writer.add_chat_template(vocabulary.template)
    if vocabulary.opened:
        writer.add_bos_token_id(vocabulary.start)
    writer.add_eos_token_id(vocabulary.end_of_document)
    unusual = [token for token in vocabulary.ends if vocabulary.tokens[token] not in END_TEXTS]
    for token, add in zip(unusual, (writer.add_eot_token_id, writer.add_eom_token_id),
                          strict=False):        # no file names more
        add(token)
    writer.add_add_bos_token(vocabulary.prompted)
