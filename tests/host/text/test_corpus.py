"""The corpus: which document is for what, and one line for each thing wrong with the files."""

import hashlib
import lzma
from pathlib import Path

import pytest

from host.text.corpus import CorpusError, read_corpus

DOCUMENTS = [f"Document {n}.\nIt has two lines." for n in range(300)]


def digest(document):
    return hashlib.sha256(document.encode()).hexdigest()[:16]


@pytest.fixture
def folder(tmp_path):
    """Make a corpus whose documents are held out, dropped and for training in turn."""
    with lzma.open(tmp_path / "tales.txt.xz", "wt") as file:
        file.write("".join(f"{document}\n<|endoftext|>\n" for document in DOCUMENTS))
    parts = ["heldout", "dropped", "train"]
    write_splits(tmp_path, [f"tales\t{n}\t{parts[n % 3]}\t{digest(document)}"
                            for n, document in enumerate(DOCUMENTS)])
    return tmp_path


def write_splits(folder, lines):
    (folder / "splits.tsv").write_text("\n".join(["text\tdocument\tpart\tsha256", *lines]) + "\n")


def message(folder):
    with pytest.raises(CorpusError) as caught:
        read_corpus(folder)
    return str(caught.value).removeprefix(f"{folder}/")


def test_every_document_has_its_part(folder):
    parts = read_corpus(folder)
    assert parts["heldout"] == DOCUMENTS[0::3]
    training = DOCUMENTS[2::3]
    assert sorted(parts["train"] + parts["calibration"]) == sorted(training)
    assert parts["calibration"] == [document for document in training
                                    if int(digest(document), 16) % 128 == 0]


def test_no_texts(tmp_path):
    assert message(tmp_path) == f"{tmp_path}: must hold plain texts (*.txt) or splits.tsv"
    assert message(tmp_path / "absent") == f"{tmp_path}/absent: No such file or directory"


def test_folder_of_plain_texts(tmp_path):
    """Ten documents of one's own serve all parts, in the order of the names."""
    for n in range(10):
        (tmp_path / f"{n}.txt").write_text(f"\ufeffDocument {n}.\n\nIt has two paragraphs.\n")
    (tmp_path / "notes.md").write_text("no document")
    parts = read_corpus(tmp_path)
    numbers = {part: [int(document[9]) for document in documents]
               for part, documents in parts.items()}
    assert numbers == {"heldout": [0, 4, 8], "calibration": [1, 5, 9], "train": [2, 3, 6, 7]}
    assert parts["heldout"][0] == "Document 0.\n\nIt has two paragraphs."


def test_long_plain_text(tmp_path):
    """It is cut at blank lines; nothing is lost."""
    paragraphs = [f"Paragraph {n}: " + "word " * 150 for n in range(9)]
    path = tmp_path / "book.txt"
    path.write_text("\n \n".join(paragraphs))
    parts = read_corpus(path)
    documents = [parts["heldout"][0], parts["calibration"][0], parts["train"][0]]
    assert [document.count("Paragraph") for document in documents] == [3, 3, 3]
    assert sum(map(len, parts.values())) == 3
    assert "\n\n".join(documents).split() == " ".join(paragraphs).split()


def test_marked_plain_text(tmp_path):
    path = tmp_path / "tales"
    path.write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree\n")
    assert read_corpus(path) == {"heldout": ["one"], "calibration": ["two"], "train": ["three"]}


def test_plain_text_of_another_encoding(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Märchen".encode("latin-1"))
    assert message(path) == f"{path}: must be UTF-8, but byte 1 is 0xe4"


def test_missing_text(folder):
    (folder / "tales.txt.xz").unlink()
    assert message(folder).startswith("tales.txt.xz: cannot be read as xz-compressed UTF-8: ")


@pytest.mark.parametrize("content", [b"plain text", lzma.compress(b"cut" * 100)[:-20],
                                     lzma.compress(b"\xff\xfe")])
def test_unreadable_text(folder, content):
    (folder / "tales.txt.xz").write_bytes(content)
    assert message(folder).startswith("tales.txt.xz: cannot be read as xz-compressed UTF-8: ")


def test_other_document(folder):
    write_splits(folder, ["tales\t7\ttrain\t0123456789abcdef"])
    assert message(folder) == ("splits.tsv: document 7 of tales must have the SHA-256 "
                               f"0123456789abcdef..., not {digest(DOCUMENTS[7])}...")


def test_document_beyond_the_text(folder):
    write_splits(folder, ["tales\t300\ttrain\t0123456789abcdef"])
    assert message(folder) == "splits.tsv: line 2 names document 300 of tales, which has 300"


@pytest.mark.parametrize("line", ["tales\t1\ttrain", "tales\tone\ttrain\t0", "tales\t1\ttest\t0"])
def test_malformed_line(folder, line):
    write_splits(folder, [line])
    assert message(folder) == ("splits.tsv: line 2 must be text, document number, train, heldout "
                               f"or dropped, and digest, not {line!r}")


def test_shipped():
    """The texts of the tests and of the examples in the docs, which are in every clone."""
    parts = read_corpus(Path(__file__).parents[2] / "data" / "corpus")
    assert {part: len(documents) for part, documents in parts.items()} == {
        "heldout": 4, "calibration": 4, "train": 8}
    assert all(text.isascii() and 1000 < len(text) < 10000
               for documents in parts.values() for text in documents)
