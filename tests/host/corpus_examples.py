"""Corpus directories for the host's tests."""

import hashlib
import lzma


def write_corpus(folder, documents, *, held_out):
    """Write documents of one text; ``held_out`` says of a number whether its document is.

    The others are to train with, one in 128 of them calibration text.
    """
    with lzma.open(folder / "tales.txt.xz", "wt") as file:
        file.write("".join(f"{document}\n<|endoftext|>\n" for document in documents))
    lines = ["text\tdocument\tpart\tsha256"]
    lines += [f"tales\t{n}\t{'heldout' if held_out(n) else 'train'}\t"
              f"{hashlib.sha256(document.encode()).hexdigest()[:16]}"
              for n, document in enumerate(documents)]
    (folder / "splits.tsv").write_text("\n".join(lines) + "\n")
    return folder
