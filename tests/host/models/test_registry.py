"""What is read of a model before its tensors: the same as with them, for every family."""

import dataclasses

import pytest

from host.compiler.compile import compile_fitted, sequence_context
from host.files.errors import ModelFileError
from host.fuzz.fuzz import READERS
from host.models.examples import gguf_bytes
from host.models.registry import read_head, read_model
from hw.config import AcceleratorConfig

#: Families whose files the fuzzer begins with.
KINDS = ("gguf", "checkpoint", "llama2c", "own")


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_and_context(tmp_path, kind):
    for number, files in enumerate(READERS[kind]()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in files.items():
            if name != ".":
                (folder / name).write_bytes(data)
        path = folder / next(iter(files))
        words, context = read_head(path)
        model = read_model(path)
        assert context == model.context
        assert dataclasses.asdict(words) == dataclasses.asdict(model.vocabulary)
        if "lmul" in model.logit_scales:
            for config in (AcceleratorConfig(), AcceleratorConfig(context=16)):
                assert sequence_context(context, config, fitted=True) == compile_fitted(
                    model, config).context


def test_architecture_comes_first(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": "rwkv"}, {}))
    for read in (read_head, read_model):
        with pytest.raises(ModelFileError, match=r"general.architecture must be 'bitnet' or .*, "
                                                 r"not 'rwkv'$"):
            read(path)
