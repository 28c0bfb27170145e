"""Text: vocabularies, tokenizers, corpora, generation."""
