"""The snippets of docs/python.md, run from the repository's root."""
import doctest

import pytest

from conftest import DUMP
from tq4.__main__ import program


def test_python_md(tmp_path, monkeypatch):
    if program() is None:
        pytest.skip("built without the tq4 program")
    root = DUMP.parents[1]
    monkeypatch.chdir(root)
    result = doctest.testfile(str(root / "docs" / "python.md"), module_relative=False, globs={"folder": str(tmp_path)})
    assert result.attempted > 15 and result.failed == 0
