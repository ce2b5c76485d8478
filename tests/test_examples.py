"""The examples in docstrings run, each module's in an empty folder with a library of its own."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
from test_project_layout import module_name, sources

WITH_EXAMPLES = [path for path in sources() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_name)
def test_the_examples_of_a_module_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    module = import_module(module_name(path))
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried and not failed
