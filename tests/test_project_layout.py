"""The house rules: which room may import which, what stays light, what is never written into the source.

That the runtime alone needs no torch is held by test_runtime_law.py.
"""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FOREIGN, FOREIGN_NAMES

ROOT = Path(__file__).parent.parent
ROOMS = {
    "celebctl": ROOT / "celebctl",
    "celebctl_export": ROOT / "export" / "celebctl_export",
    "celebctl_models": ROOT / "models" / "celebctl_models",
    "celebctl_runtime": ROOT / "runtime" / "celebctl_runtime",
}
ORDER = list(ROOMS)  # a room may import itself and those after it
HEAVY = {"torch", "diffusers", "transformers"}
FOLDERS = {"runtime", "export", "models", "tests", "benchmarks"}
MAX_FILE, MAX_FUNCTION = 450, 70


def sources(*rooms: str) -> list[Path]:
    return [path for room in rooms or ORDER for path in sorted(ROOMS[room].rglob("*.py"))]


def room_of(path: Path) -> str:
    return next(room for room, folder in ROOMS.items() if path.is_relative_to(folder))


def imports(path: Path) -> Iterator[str]:
    """Top-level names of every absolute import in a file, wherever it stands, TYPE_CHECKING blocks included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def module_level_imports(path: Path) -> Iterator[str]:
    """The same, but only of statements that run when the module is imported."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources(), ids=where)
def test_imports_point_one_way(path: Path) -> None:
    """celebctl -> export -> models -> runtime: no arrow points left, up, or at the checkout's bare folders."""
    allowed = set(ORDER[ORDER.index(room_of(path)) :])
    used = set(imports(path))
    assert used & set(ORDER) <= allowed
    assert not used & FOLDERS
    assert "click" not in used  # Typer brings its own and hides it


@pytest.mark.parametrize("path", sources("celebctl"), ids=where)
def test_the_desk_imports_heavy_things_where_it_needs_them(path: Path) -> None:
    heavy = HEAVY | {"onnxruntime", "onnx", "insightface", "cv2"}
    if path.is_relative_to(ROOMS["celebctl"] / "cli"):
        assert not set(module_level_imports(path)) & (heavy | {"numpy", "PIL", "rich"})
    elif path.parent == ROOMS["celebctl"]:
        assert not set(module_level_imports(path)) & heavy


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from celebctl.cli import main\n"
        "code = main(['--help']); main(['--version'])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'onnxruntime', 'numpy', 'PIL', 'insightface', 'cv2'}\n"
        "assert code == 0 and not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "learn" in done.stdout


def test_help_costs_little_more_than_its_library() -> None:
    """Seconds of CPU beside those of importing Typer and Rich, each the best of three: machines differ, this hardly."""

    def spent(code: str) -> float:
        before = os.times()
        run_python(code)
        after = os.times()
        return after.children_user - before.children_user + after.children_system - before.children_system

    library = min(spent("import typer, rich.console") for _ in range(3))
    assert min(spent("from celebctl.cli import main; main(['--help'])") for _ in range(3)) < 5 * library


def test_version_needs_no_command_line_library() -> None:
    code = "import sys; from celebctl.cli import main; main(['--version']); assert 'typer' not in sys.modules"
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sources(), ids=where)
def test_no_machine_and_no_debris_in_the_source(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[\"'(=\s](/work|/tmp|/root|/home|/mnt|C:\\)[/\\\"'\s]", text), "a path of some machine"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text)
    assert not re.search(r"^\s*(breakpoint\(|import pdb|print\(.*#\s*debug)", text, re.MULTILINE)


@pytest.mark.parametrize("path", sources(), ids=where)
def test_files_and_functions_fit_in_a_head(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc"}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", sources(), ids=where)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("room", ORDER)
def test_type_checkers_may_trust_every_room(room: str) -> None:
    assert (ROOMS[room] / "py.typed").is_file()


def test_the_two_onnx_runtimes_never_meet() -> None:
    """onnxruntime and onnxruntime-gpu own one module; insightface asks for the first, so `cuda` is apart."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    gpu = [name for name, needs in extras.items() if any(need.startswith("onnxruntime-gpu") for need in needs)]
    assert gpu == ["cuda"]
    # The packages of 1.28.0 to 1.31.1 declare these extras; cuBLAS is in neither, and the provider is linked to it.
    assert [need.partition(">")[0] for need in extras["cuda"]] == ["onnxruntime-gpu[cuda,cudnn]", "nvidia-cublas"]
    base = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert not [need for need in base if re.match(r"torch|diffusers|transformers|onnx", need)]


def test_a_test_starts_from_nothing() -> None:
    set_by_us = {"PYTHONPATH"}
    assert not [name for name in os.environ if name.startswith(FOREIGN) and name not in set_by_us]
    assert not set(FOREIGN_NAMES) & set(os.environ)
    assert not list(Path().iterdir()) and not list(Path.home().iterdir())
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


def test_no_setting_of_the_user_reaches_a_test(tmp_path: Path) -> None:
    """The suite in a hostile place: other settings, another home, another folder, other packages of the same name."""
    (tmp_path / "celebctl.toml").write_text("this is no TOML")
    for folder in ("home/.config/celebctl", "other/celebctl"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "home/.config/celebctl/config.toml").write_text("modle = 'x'")
    (tmp_path / "other/celebctl/__init__.py").write_text("raise ImportError('the wrong package')")
    hostile = {"PYTHONPATH": str(tmp_path / "other"), "HOME": str(tmp_path / "home"), "COLUMNS": "20", "NO_COLOR": "1"}
    hostile |= dict.fromkeys(("CELEBCTL_HOME", "HF_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"), str(tmp_path / "none"))
    hostile |= {"CELEBCTL_MODEL": "none", "HF_HUB_OFFLINE": "1", "VIRTUAL_ENV": "/none", "GIT_DIR": "/none"}
    names = ("test_settings.py", "test_library.py", "test_house.py::test_a_test_starts_from_nothing")
    tests = [str(ROOT / "tests" / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *tests],
        cwd=tmp_path,
        env={**os.environ, **hostile},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout and not (tmp_path / "none").exists()


def test_make_works_in_a_folder_with_a_space(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    folder = tmp_path / "a b ü" / "celebctl"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "pyproject.toml").touch()
    rules = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert rules is not None
    command = ["make", "-n", *rules[1].split(), f"MODEL={folder}/my model"]
    done = subprocess.run(
        command, cwd=folder, env={"PATH": os.environ["PATH"]}, capture_output=True, encoding="utf-8", check=True
    )
    words = shlex.split(done.stdout.replace("\\\n", " "), comments=True)
    paths = [word for word in words if "a b ü" in word or "ü/celebctl" in word]
    assert len(paths) > 10 and all(str(folder) in path for path in paths), "a path is split at its space"
