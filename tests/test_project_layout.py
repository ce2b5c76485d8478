"""Laws of the project: imports, what stays light, sizes of functions, words.

That the runtime needs no torch is tested in test_runtime_without_torch.py. Each law lists every offender.
"""

import ast
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import FOREIGN, FOREIGN_NAMES

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "celebctl": ROOT / "celebctl",
    "celebctl_export": ROOT / "export" / "celebctl_export",
    "celebctl_models": ROOT / "models" / "celebctl_models",
    "celebctl_runtime": ROOT / "runtime" / "celebctl_runtime",
}
ORDER = list(PACKAGES)  # a package may import itself and those after it
FOLDERS = {"runtime", "export", "models", "tests", "benchmarks"}
HEAVY = {"torch", "diffusers", "transformers", "onnxruntime", "onnx", "insightface", "cv2"}
MAX_FUNCTION_LINES, MAX_PARAMETERS, MEDIAN_FUNCTION_LINES = 60, 6, 10
Function = ast.FunctionDef | ast.AsyncFunctionDef

#: Metaphors of earlier versions. The field has a standard term for each (docs/glossary.md explains our own terms).
BANNED_NAMES = {
    "desk", "shelf", "shelves", "sitter", "sitters", "sitting", "guest", "guests", "stranger", "strangers", "resident",
    "crowd", "school", "lesson", "lessons", "jury", "easel", "artist", "casts", "told", "hear", "heard", "somebody",
    "nobody", "kin", "workshop", "shop", "seat", "seats", "rival", "entrant",
}  # fmt: skip
BANNED_WORDS = BANNED_NAMES - {"heard"} | {"whom", "everybody"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(*packages: str) -> list[Path]:
    return [path for package in packages or ORDER for path in sorted(PACKAGES[package].rglob("*.py"))]


def package_of(path: Path) -> str:
    return next(package for package, folder in PACKAGES.items() if path.is_relative_to(folder))


def where(path: Path, node: ast.AST | None = None) -> str:
    line = getattr(node, "lineno", None)
    return path.relative_to(ROOT).as_posix() + (f":{line}" if line else "")


def module_name(path: Path) -> str:
    package = package_of(path)
    parts = (package, *path.relative_to(PACKAGES[package]).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Absolute module names of the imports in a file, TYPE_CHECKING blocks included unless `top_level_only`."""
    nodes = parsed(path).body if top_level_only else list(ast.walk(parsed(path)))
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{parent}.{base}" if base else parent
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def functions(path: Path) -> Iterator[Function]:
    yield from (node for node in ast.walk(parsed(path)) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def parameters_of(function: Function) -> list[str]:
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def is_command(function: Function) -> bool:
    """Typer commands: the framework reads their parameters. They take the context first."""
    annotations = [one.annotation for one in function.args.args[:1]]
    return any(one is not None and ast.unparse(one) == "typer.Context" for one in annotations)


def user_texts(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """String literals and the constant parts of f-strings, docstrings included."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value


def docstrings(path: Path) -> set[ast.AST]:
    found: set[ast.AST] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(first.value)
    return found


def test_imports_point_one_way() -> None:
    """celebctl -> export -> models -> runtime, and never at the bare folders of the checkout."""
    wrong: list[str] = []
    for path in sources():
        used = {name.partition(".")[0] for name in imports(path)}
        allowed = set(ORDER[ORDER.index(package_of(path)) :])
        forbidden = (used & set(ORDER)) - allowed | used & FOLDERS | used & {"click"}  # Typer hides its own click
        wrong += [f"{where(path)} imports {name}" for name in sorted(forbidden)]
    assert not wrong, wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions and for type checkers count: a reader follows them too. Package indexes do not."""
    modules = {module_name(path): path for path in sources() if path.name != "__init__.py"}
    graph = {name: set(imports(path)) & modules.keys() - {name} for name, path in modules.items()}
    before = None
    while before != graph:  # peel off what imports nothing that is left, and what nothing left imports
        before = graph
        needed = {used for uses in graph.values() for used in uses}
        graph = {name: used & graph.keys() for name, used in graph.items() if used & graph.keys() and name in needed}
    circles = {name: sorted(used) for name, used in graph.items()}
    assert not circles, circles


def test_the_command_line_imports_heavy_packages_where_it_needs_them() -> None:
    wrong: list[str] = []
    for path in sources("celebctl"):
        used = {name.partition(".")[0] for name in imports(path, top_level_only=True)}
        if path.is_relative_to(PACKAGES["celebctl"] / "cli"):
            wrong += [f"{where(path)}: {name}" for name in used & (HEAVY | {"numpy", "PIL", "rich"})]
        elif path.parent == PACKAGES["celebctl"]:
            wrong += [f"{where(path)}: {name}" for name in used & HEAVY]
    assert not wrong, wrong


def test_functions_are_short_and_take_few_parameters() -> None:
    long = [
        f"{where(path, one)} {one.name}: {lines_of(one)} lines"
        for path in sources()
        for one in functions(path)
        if lines_of(one) > MAX_FUNCTION_LINES and not is_command(one)
    ]
    wide = [
        f"{where(path, one)} {one.name}: {len(parameters_of(one))} parameters"
        for path in sources()
        for one in functions(path)
        # The inputs of an ONNX graph are the parameters of its module's forward.
        if len(parameters_of(one)) > MAX_PARAMETERS and not is_command(one) and one.name not in ("__init__", "forward")
    ]
    assert not long + wide, long + wide
    assert statistics.median(lines_of(one) for path in sources() for one in functions(path)) <= MEDIAN_FUNCTION_LINES


def test_everything_public_has_a_docstring() -> None:
    missing: list[str] = []
    for path in sources():
        tree = parsed(path)
        public = [tree, *(one for one in tree.body if isinstance(one, ast.ClassDef | Function))]
        classes = [one for one in tree.body if isinstance(one, ast.ClassDef) and not one.name.startswith("_")]
        public += [one for kind in classes for one in kind.body if isinstance(one, Function)]
        for node in public:
            name = getattr(node, "name", path.stem)
            if not name.startswith("_") and name != "forward" and ast.get_docstring(node) is None:  # type: ignore[arg-type]
                missing.append(f"{where(path, node)} {name}")
    assert not missing, missing


def test_names_are_standard_terms() -> None:
    """No identifier, module or test file carries a metaphor of earlier versions."""
    wrong: set[str] = set()
    for path in [*sources(), *sorted((ROOT / "tests").glob("*.py"))]:
        if path == Path(__file__):
            continue
        names = {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}
        names |= {node.arg for node in ast.walk(parsed(path)) if isinstance(node, ast.arg)}
        names |= {node.attr for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)}
        names |= {node.name for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef | Function)}
        for name in (*names, path.stem):
            parts = re.findall(r"[a-z]+|[A-Z][a-z]*", name)
            wrong |= {f"{where(path)}: {name}" for part in parts if part.lower() in BANNED_NAMES}
    assert not wrong, sorted(wrong)


def test_texts_are_in_the_words_of_the_field() -> None:
    """Messages, help and docstrings."""
    banned = re.compile(rf"\b({'|'.join(sorted(BANNED_WORDS))})\b", re.IGNORECASE)
    former = re.compile(r"--(shelf|lessons)\b|(?i:peak resident)")  # former options; a term of memory
    wrong = [
        f"{where(path, node)}: {match[0]}: {text.strip()[:60]!r}"
        for path in sources()
        for node, text in user_texts(path)
        for match in banned.finditer(former.sub("", text))
    ]
    assert not wrong, wrong


def test_library_code_does_not_know_the_command_line() -> None:
    """Errors of the library carry a reason; celebctl/cli/hints.py has the commands."""
    commands = (
        "learn export gen regen animate eval list show rename rm forget mix interpolate strip sample invent nearest"
        " import inspect use download setup doctor bench basis check"
    ).replace(" ", "|")
    command = re.compile(rf"\bcelebctl ({commands})\b|(?<![\w-])--[a-z][a-z-]+")
    wrong: list[str] = []
    for path in sources():
        if path.is_relative_to(PACKAGES["celebctl"] / "cli") or path.name in ("doctor.py", "__main__.py"):
            continue  # the doctor prescribes commands
        if "argparse" in imports(path) or path.is_relative_to(PACKAGES["celebctl"] / "bench"):
            continue  # has a command line of its own; the benchmark runs the command line
        documentation = docstrings(path)
        wrong += [
            f"{where(path, node)}: {match[0]}"
            for node, text in user_texts(path)
            if node not in documentation
            for match in command.finditer(text)
        ]
    assert not wrong, wrong


def test_no_machine_and_no_leftovers_in_the_source() -> None:
    wrong: list[str] = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        for pattern in (
            r"[\"'(=\s](/work|/tmp|/root|/home|/mnt|C:\\)[/\\\"'\s]",
            r"\b(TODO|FIXME|XXX|HACK)\b",
            r"(?m)^\s*(breakpoint\(|import pdb|print\(.*#\s*debug)",
        ):
            wrong += [f"{where(path)}: {match[0]!r}" for match in re.finditer(pattern, text)]
        if path.stem in {"utils", "util", "common", "helpers", "helper", "misc"}:
            wrong.append(where(path))
    assert not wrong, wrong


def test_every_package_is_typed_and_the_version_stands_once() -> None:
    assert all((folder / "py.typed").is_file() for folder in PACKAGES.values())
    version = re.compile(r'^__version__ = "', re.MULTILINE)
    stated = [where(path) for path in sources() if version.search(path.read_text(encoding="utf-8"))]
    assert len(stated) == 1, stated


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


def test_the_two_onnx_runtimes_never_meet() -> None:
    """onnxruntime and onnxruntime-gpu own one module; insightface asks for the first, so `cuda` is apart."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    gpu = [name for name, needs in extras.items() if any(need.startswith("onnxruntime-gpu") for need in needs)]
    assert gpu == ["cuda", "gpu-cu12"]
    # The packages of 1.28.0 to 1.31.1 declare these extras; cuBLAS, which the provider is linked to, comes with cuDNN.
    assert [need.partition(">")[0] for need in extras["cuda"]] == ["onnxruntime-gpu[cuda,cudnn]"]
    workstation = [*extras["gpu"], *extras["gpu-cu12"]]
    assert not [need for need in workstation if re.match(r"insightface|opencv-python$|celebctl.*(cpu|learn)", need)]
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
    names = ("test_settings.py", "test_library.py", "test_project_layout.py::test_a_test_starts_from_nothing")
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
