"""The examples in docstrings run, each module's in an empty folder with a library of its own."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
from bundle_fakes import make_identity, write_bundle
from test_project_layout import module_name, sources

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WITH_EXAMPLES = [path for path in sources() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_name)
def test_the_examples_of_a_module_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    identity, bundle = make_identity("alice"), write_bundle(tmp_path / "bundle")
    bundle.add(identity)
    given = {"folder": tmp_path, "identity": identity, "bundle_path": bundle.path}
    failed, _ = doctest.testmod(import_module(module_name(path)), extraglobs=given, optionflags=FLAGS)
    assert not failed
