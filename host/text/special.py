"""Special tokens in texts: where a prompt has the text of a token that is found before words are.

The order is llama.cpp's: the token with the longest text is looked for first, everywhere.
"""

from collections.abc import Iterator, Sequence

from host.text.vocabulary import PieceVocabulary, Vocabulary, endings

__all__ = ["SpecialTokenFinder"]

_WHITE = " \t\n\v\f\r"


class SpecialTokenFinder:
    """What cuts a text at the tokens that are not made of words.

    Parameters
    ----------
    vocabulary : Vocabulary or PieceVocabulary
    special : bool
        Whether tokens that stand for no text, and those that end one, are looked for, beside the
        tokens that a user has added.
    """

    def __init__(self, vocabulary: Vocabulary | PieceVocabulary, *, special: bool):
        control = {vocabulary.start, *endings(vocabulary), *vocabulary.controls}
        tokens = set(vocabulary.user) - control | (control if special else set())
        texts = {index: vocabulary.tokens[index] for index in tokens}
        self._stripped = frozenset(vocabulary.stripped)
        self._tokens = sorted(((text, index) for index, text in texts.items() if text),
                              key=lambda token: (-len(token[0].encode()), token[1]))

    def parts(self, text: str) -> Sequence[str | int]:
        """Return the tokens that were found, and the pieces of text before and behind them."""
        parts: list[str | int] = [text] if text else []
        for found, index in self._tokens:
            if found in text:
                parts = [piece for part in parts for piece in (
                    self._cut(part, found, index) if isinstance(part, str) else (part,))]
        return parts

    def _cut(self, text: str, found: str, index: int) -> Iterator[str | int]:
        first, *others = text.split(found)
        if first:
            yield first
        for other in others:
            yield index
            piece = other.lstrip(_WHITE) if index in self._stripped else other
            if piece:
                yield piece
