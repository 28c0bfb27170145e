"""Tokenized corpus: made once, kept in a cache file."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as BPETokenizer
from tokenizers import models, pre_tokenizers, trainers

from host.text.corpus import PARTS, read_corpus
from host.text.tokenizer import Tokenizer, byte_symbols
from host.text.vocabulary import Vocabulary

__all__ = ["Documents", "epoch_stream", "prepare"]

_END = "<|endoftext|>"


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """One part of the corpus.

    Attributes
    ----------
    tokens : uint16 array, all documents end to end, each ended by its end-of-document token
    lengths : int64 array, tokens of each document, the end-of-document token included
    size : int
        Bytes of the texts.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    size: int

    def split(self) -> list[np.ndarray]:
        """Return one array a document."""
        return np.split(self.tokens, np.cumsum(self.lengths)[:-1])


def _train_vocabulary(documents: list[str], size: int) -> Vocabulary:
    bpe = BPETokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=size, special_tokens=[_END], initial_alphabet=byte_symbols(),
        show_progress=False))
    model = json.loads(bpe.to_str())["model"]
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return Vocabulary(tokens=tuple(sorted(model["vocab"], key=model["vocab"].get)),
                      merges=tuple(merges), end_of_document=model["vocab"][_END])


def _tokenize(texts: list[str], tokenizer: Tokenizer) -> Documents:
    end = tokenizer.vocabulary.end_of_document
    documents = [np.array([*tokenizer.encode(text), end], np.uint16) for text in texts]
    return Documents(tokens=np.concatenate(documents),
                     lengths=np.array([len(document) for document in documents]),
                     size=sum(len(text.encode()) for text in texts))


def prepare(corpus: str | os.PathLike, vocab: int, *, cache: Path | None = None,
            limit: int | None = None) -> tuple[Vocabulary, dict[str, Documents]]:
    """Train a tokenizer on the training documents and tokenize every part.

    Parameters
    ----------
    corpus : path
        Directory for :func:`host.text.corpus.read_corpus`.
    vocab : int
        Tokens, the 256 bytes and the end-of-document token included.
    cache : path, optional
        File to read instead where it exists, and to write where it does not.
    limit : int, optional
        Use only the first documents of each part.
    """
    if cache is not None and cache.exists():
        with np.load(cache) as saved:
            vocabulary = json.loads(str(saved["vocabulary"]))
            return (Vocabulary(tuple(vocabulary["tokens"]), tuple(vocabulary["merges"]),
                               vocabulary["end_of_document"]),
                    {part: Documents(saved[f"{part}.tokens"], saved[f"{part}.lengths"],
                                     int(saved[f"{part}.size"])) for part in PARTS})
    texts = {part: documents[:limit] for part, documents in read_corpus(corpus).items()}
    vocabulary = _train_vocabulary(texts["train"], vocab)
    tokenizer = Tokenizer(vocabulary)
    parts = {part: _tokenize(texts[part], tokenizer) for part in PARTS}
    if cache is not None:
        arrays = {f"{part}.{field}": value for part, documents in parts.items()
                  for field, value in dataclasses.asdict(documents).items()}
        np.savez_compressed(cache, vocabulary=json.dumps(dataclasses.asdict(vocabulary)), **arrays)
    return vocabulary, parts


def epoch_stream(documents: list[np.ndarray], end: int, lanes: int,
                 rng: np.random.Generator) -> np.ndarray:
    """Shuffle the documents and cut their concatenation into ``lanes`` equal rows.

    Every document follows an end-of-document token, which a model reads in the zero state.
    """
    order = rng.permutation(len(documents))
    stream = np.concatenate([[end], *(documents[index] for index in order)])
    columns = len(stream) // lanes
    return stream[:lanes * columns].reshape(lanes, columns).astype(np.int64)
