"""The snippets of docs/python.md, run from the repository's root; those that need torch and transformers in a test of their own."""
import doctest
import re

import pytest

from conftest import DUMP
from tq4.__main__ import program

ROOT = DUMP.parents[1]


def run(text, folder, monkeypatch, least):
    if program() is None:
        pytest.skip("built without the tq4 program")
    monkeypatch.chdir(ROOT)
    test = doctest.DocTestParser().get_doctest(text, {"folder": str(folder)}, "python.md", "docs/python.md", 0)
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > least and result.failed == 0


def test_python_md(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "python.md").read_text()
    plain = re.sub(r"```python\n(?:(?!```).)*?torch(?:(?!```).)*?```", "", text, flags=re.DOTALL)
    assert 0 < len(plain) < len(text)
    run(plain, tmp_path, monkeypatch, 25)


def test_python_md_with_torch(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed").set_num_threads(1)
    pytest.importorskip("transformers", reason="transformers is not installed")
    run((ROOT / "docs" / "python.md").read_text(), tmp_path, monkeypatch, 40)
