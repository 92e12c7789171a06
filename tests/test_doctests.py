"""The examples in docstrings give what they say."""

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = [
    str(file.relative_to(REPOSITORY))
    for package in ("cgal", "flows", "study")
    for file in sorted((REPOSITORY / package).rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.parametrize("file", FILES)
def test_examples_give_what_they_say(file: str) -> None:
    """Read from the source: doctest's own search misses functions that the import hook of these tests has wrapped."""
    module = import_module(file.removesuffix(".py").replace("/", "."))
    runner, parser = doctest.DocTestRunner(), doctest.DocTestParser()
    for node in ast.walk(ast.parse((REPOSITORY / file).read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            examples = ast.get_docstring(node) or ""
            runner.run(parser.get_doctest(examples, dict(vars(module)), module.__name__, file, 0))
    found = runner.summarize(verbose=False)
    assert found.attempted
    assert not found.failed
