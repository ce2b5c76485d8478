"""A setting comes from the nearest layer that has it, and says which."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celebctl.cli.safety import choose_checker
from celebctl.library import Library
from celebctl.marks import signing_key, user_watermark_key
from celebctl.pipeline import wildcard_folder
from celebctl.settings import KNOWN, Settings, save_setting
from celebctl_runtime.errors import CelebctlError, UsageError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def read(tmp_path: Path, home: Path, **environment: str) -> Settings:
    return Settings.read(tmp_path, {"CELEBCTL_HOME": str(home), **environment})


def test_precedence_and_origin(tmp_path: Path, home: Path) -> None:
    """flag > environment > ./celebctl.toml > user config > default: each layer in turn uncovers the next."""
    assert read(tmp_path, home).get("model").origin == "default"
    (home / "config.toml").write_text('model = "from-user"')
    assert read(tmp_path, home).get("model").value == "from-user"
    assert read(tmp_path, home).get("model").origin == str(home / "config.toml")
    (tmp_path / "celebctl.toml").write_text('model = "from-project"\n')
    assert read(tmp_path, home).get("model").origin == "./celebctl.toml"
    found = read(tmp_path, home, CELEBCTL_MODEL="from-environment")
    assert (found.get("model").value, found.get("model").origin) == ("from-environment", "CELEBCTL_MODEL")
    assert found.get("model", "from-flag").origin == "--model"
    assert found.text("model", "from-flag") == "from-flag"


def test_defaults_without_any_file(tmp_path: Path) -> None:
    found = Settings.read(tmp_path, {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)})
    assert found.text("model") == "mini"
    assert found.text("face_models") is None
    assert found.number("threads") == 0


def test_an_empty_variable_is_no_value(tmp_path: Path, home: Path) -> None:
    assert read(tmp_path, home, CELEBCTL_MODEL="").get("model").origin == "default"


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ("modle = 'mini'", "did you mean model"),
        ("colour = 'blue'", "known settings"),
        ("threads = 'many'", "CPU threads"),
        ("threads = -1", "CPU threads"),
        ("threads = true", "CPU threads"),
        ("model = 3", "known name"),
        ("device = 'gpu'", "auto, cpu, cuda"),
        ("preset = 'Clean'", "clean, faithful"),
        ("model = ", "write lines like"),
    ],
)
def test_mistakes_are_refused_with_a_cure(tmp_path: Path, home: Path, toml: str, text: str) -> None:
    (tmp_path / "celebctl.toml").write_text(toml)
    with pytest.raises(UsageError) as error:
        found = read(tmp_path, home)
        for name in KNOWN:
            found.get(name)
    assert text in error.value.hint


def test_numbers_may_come_as_text_from_the_environment(tmp_path: Path, home: Path) -> None:
    assert read(tmp_path, home, CELEBCTL_THREADS=" 3 ").number("threads") == 3
    with pytest.raises(UsageError, match="CELEBCTL_THREADS"):
        read(tmp_path, home, CELEBCTL_THREADS="three").number("threads")


def test_a_byte_order_mark_is_no_trouble(tmp_path: Path, home: Path) -> None:
    (tmp_path / "celebctl.toml").write_bytes(b'\xef\xbb\xbfmodel = "x"\r\n')
    assert read(tmp_path, home).text("model") == "x"


def test_files_that_are_not_text_are_named(tmp_path: Path, home: Path) -> None:
    (tmp_path / "celebctl.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"celebctl\.toml"):
        read(tmp_path, home)


# Setting something once.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'model = "sd15"\n'),
        ("# mine\nthreads = 2  # few\n", '# mine\nthreads = 2  # few\nmodel = "sd15"\n'),
        ("# mine\n  model = 'old' # was good\nthreads = 2", '# mine\n  model = "sd15" # was good\nthreads = 2'),
        ('threads = 2\r\nmodel="a\\"b"\r\n', 'threads = 2\r\nmodel="sd15"\r\n'),
        ("threads = 2\r\n", 'threads = 2\r\nmodel = "sd15"\r\n'),
        ('# model = "no"\n', '# model = "no"\nmodel = "sd15"\n'),
        ('model = """\nold"""\n', 'model = "sd15"\n'),
    ],
)
def test_other_lines_and_comments_stay(tmp_path: Path, home: Path, before: str, after: str) -> None:
    file = home / "config.toml"
    file.write_bytes(before.encode())
    assert save_setting("model", "sd15", {"CELEBCTL_HOME": str(home)}) == file
    assert file.read_bytes().decode() == after
    assert read(tmp_path, home).text("model") == "sd15"


@settings(max_examples=40, deadline=None)
@given(value=st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_text_is_kept_or_refused_whole(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    """What was set is what is read; a value that TOML cannot hold leaves the file as it was."""
    home = tmp_path_factory.mktemp("home")
    (home / "config.toml").write_text("threads = 2\n")
    try:
        save_setting("model", value, {"CELEBCTL_HOME": str(home)})
    except UsageError:
        assert (home / "config.toml").read_text() == "threads = 2\n"
    else:
        assert tomllib.loads((home / "config.toml").read_bytes().decode()) == {"model": value, "threads": 2}


def test_the_first_setting_makes_the_file(tmp_path: Path) -> None:
    home = tmp_path / "not" / "yet"
    save_setting("model", "sd15", {"CELEBCTL_HOME": str(home)})
    assert read(tmp_path, home).text("model") == "sd15"


def test_a_value_of_the_wrong_type_is_replaced(home: Path) -> None:
    (home / "config.toml").write_text("model = 3\n")
    save_setting("model", "sd15", {"CELEBCTL_HOME": str(home)})
    assert (home / "config.toml").read_text() == 'model = "sd15"\n'


def test_a_damaged_file_is_left_alone(home: Path) -> None:
    (home / "config.toml").write_text("model = \n")
    with pytest.raises(UsageError, match="not valid TOML"):
        save_setting("model", "sd15", {"CELEBCTL_HOME": str(home)})
    assert (home / "config.toml").read_text() == "model = \n"


def test_a_value_that_does_not_suit_is_refused(home: Path) -> None:
    with pytest.raises(UsageError, match="device"):
        save_setting("device", "gpu", {"CELEBCTL_HOME": str(home)})
    assert not (home / "config.toml").exists()


def test_paths_of_unknown_users_are_refused_as_missing_files(tmp_path: Path, home: Path) -> None:
    credentials = {"CELEBCTL_CERTIFICATE": "~nouser/a.pem", "CELEBCTL_PRIVATE_KEY": "~nouser/b.pem"}
    with pytest.raises(CelebctlError) as caught:
        signing_key(Library(home), read(tmp_path, home, **credentials))
    assert caught.value.exit_code != 1
    with pytest.raises(CelebctlError) as caught:
        choose_checker(read(tmp_path, home, CELEBCTL_SAFETY_CHECKER="~nouser/checker"))
    assert caught.value.exit_code != 1
    assert wildcard_folder(Library(home), "~nouser/words") == Path("~nouser/words")


def test_a_watermark_key_may_be_any_bytes(tmp_path: Path, home: Path) -> None:
    found = read(tmp_path, home, CELEBCTL_WATERMARK_KEY=b"s\xffcret".decode(errors="surrogateescape"))
    assert user_watermark_key(found) == b"s\xffcret"


def test_a_secret_is_never_shown(tmp_path: Path, home: Path) -> None:
    (home / "config.toml").write_text("watermark_key = 31415926\n")
    with pytest.raises(UsageError) as caught:
        read(tmp_path, home).get("watermark_key")
    assert "31415926" not in str(caught.value) and "watermark_key" in caught.value.problem
