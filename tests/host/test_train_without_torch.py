"""The trainer where its optional extra is missing."""

import importlib
import sys

import pytest


def test_pytorch_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "host.train.__main__", raising=False)
    with pytest.raises(SystemExit, match=r"^Training needs PyTorch, an optional extra: "
                                         r"pip install -e '\.\[train\]'$"):
        importlib.import_module("host.train.__main__")
