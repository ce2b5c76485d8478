"""Files of a library are their owner's alone, whatever the umask is."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_fakes import TABLE_HASH, make_identity, write_bundle
from console_fakes import CommandLine

from celebctl.library import Library
from celebctl.settings import save_setting
from celebctl_runtime.bundle.bundle import Bundle
from celebctl_runtime.files import atomic_directory, atomic_write
from celebctl_runtime.private_files import make_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Every path whose mode is not 0700 (folders) or 0600 (files)."""
    paths = [folder, *folder.rglob("*")]
    found = {path: (stat.S_IMODE(path.lstat().st_mode), 0o700 if path.is_dir() else 0o600) for path in paths}
    return {str(path.relative_to(folder)): oct(mode) for path, (mode, wanted) in found.items() if mode != wanted}


@pytest.mark.usefixtures("umask")
def test_everything_in_a_library_is_private(tmp_path: Path) -> None:
    library = Library(tmp_path / "data" / "celebctl")
    library.save(make_identity("alice"))
    atomic_write(library.checkpoint(["bob"], "toy-01234567"), lambda path: path.write_bytes(b"half"))
    (library.cache() / "basis").mkdir(mode=0o700)
    with atomic_directory(library.bundle_path("toy", TABLE_HASH)) as folder:
        shutil.copytree(write_bundle(tmp_path / "bundle").path, folder, dirs_exist_ok=True)
    Bundle.open(library.bundles()[0]).add(make_identity("alice"))
    with atomic_directory(library.root / "models" / "tiny") as folder:
        (folder / "unet").mkdir(mode=0o755)
        (folder / "unet" / "config.json").touch(mode=0o644)
    assert not modes(library.root)


def test_commands_write_private_files(console: CommandLine) -> None:
    before = os.umask(0o000)
    try:
        assert console("learn", console.photo()).code == 0
        assert console("export").code == 0
        assert console("gen", "alice", "-s", "1", "-o", "drawn.png").code == 0
        assert console("learn", console.photo("b.png"), "--name", "bob").code == 0
    finally:
        os.umask(before)
    assert not modes(console.library.root)
    assert stat.S_IMODE(Path("drawn.png").stat().st_mode) == 0o666, "a picture elsewhere is the umask's"


def test_an_older_library_is_restricted_when_it_is_opened(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "library", tmp_path / "elsewhere"
    for name in ("identities/toy-01234567/alice.safetensors", "cache/basis.safetensors"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"")
    elsewhere.mkdir()
    (elsewhere / "weights").touch(mode=0o644)
    (root / "models").symlink_to(elsewhere)
    (root / "cache" / "weights").symlink_to(elsewhere / "weights")
    Library(root)
    assert modes(root) == {"models": "0o777", "cache/weights": "0o777"}, "of links"
    assert modes(elsewhere).keys() == {".", "weights"}, "links are not followed"


def test_a_library_in_a_folder_of_other_things_restricts_its_own_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.png").touch(mode=0o644)
    tmp_path.chmod(0o755)
    Library(tmp_path).save(make_identity("alice"))
    Library(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert modes(tmp_path).keys() == {".", "holiday", "holiday/beach.png"}


@pytest.mark.parametrize("others", [("models",), ("cache", "src"), ("identities", "bundles", ".git")])
def test_folders_of_a_project_keep_their_modes(tmp_path: Path, others: tuple[str, ...]) -> None:
    tmp_path.chmod(0o755)
    for name in others:
        (tmp_path / name).mkdir(mode=0o755)
    before = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path, *tmp_path.iterdir())}
    Library(tmp_path)
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in before} == before


def test_models_and_wildcards_keep_their_modes(tmp_path: Path) -> None:
    library = Library(tmp_path / "library")
    library.save(make_identity("alice"))
    for name in ("models", "wildcards"):
        (library.root / name).mkdir(mode=0o755)
    library.root.chmod(0o755)
    (library.root / "identities").chmod(0o755)
    Library(library.root)
    assert modes(library.root).keys() == {"models", "wildcards"}


def test_a_bundle_elsewhere_has_the_modes_of_the_umask(tmp_path: Path, exported_copy: Path) -> None:
    Library(tmp_path / "library")
    Bundle.open(exported_copy).remove("ann")
    assert stat.S_IMODE((exported_copy / "manifest.json").stat().st_mode) == 0o666 & ~current_umask()


def test_settings_are_private_and_folders_elsewhere_are_not(tmp_path: Path) -> None:
    path = save_setting("watermark_key", "secret", {"CELEBCTL_HOME": str(tmp_path / "home")})
    assert not modes(path.parent)
    make_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~current_umask()
    with pytest.raises(FileExistsError):
        make_folder(path)


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
