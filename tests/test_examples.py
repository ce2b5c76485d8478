"""The examples in docstrings run, each module's in an empty folder with a library of its own."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
from bundle_fakes import make_identity, write_bundle
from test_project_layout import module_name, sources

from celebctl.library import Library

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
#: An example that trains or needs a network is marked +SKIP and only shown.
RUNNABLE = re.compile(r"^ *>>> (?!.*\+SKIP)", re.MULTILINE)
WITH_EXAMPLES = [path for path in sources() if RUNNABLE.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_name)
def test_the_examples_of_a_module_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    identity, bundle = make_identity("alice"), write_bundle(tmp_path / "bundle")
    bundle.add(identity)
    library = Library()
    given = {"folder": tmp_path, "identity": identity, "bundle_path": bundle.path, "library": library}
    failed, tried = doctest.testmod(import_module(module_name(path)), extraglobs=given, optionflags=FLAGS)
    assert tried and not failed
