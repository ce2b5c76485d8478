"""A setting comes from the nearest layer that has it, and says which."""

from pathlib import Path

import pytest

from celebctl.settings import KNOWN, Settings
from celebctl_runtime.errors import UsageProblem


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
    settings = read(tmp_path, home, CELEBCTL_MODEL="from-environment")
    assert (settings.get("model").value, settings.get("model").origin) == ("from-environment", "CELEBCTL_MODEL")
    assert settings.get("model", "from-flag").origin == "--model"
    assert settings.text("model", "from-flag") == "from-flag"


def test_defaults_without_any_file(tmp_path: Path) -> None:
    settings = Settings.read(tmp_path, {"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)})
    assert settings.text("model") == "mini"
    assert settings.text("face_models") is None
    assert settings.number("threads") == 0


def test_an_empty_variable_is_no_value(tmp_path: Path, home: Path) -> None:
    assert read(tmp_path, home, CELEBCTL_MODEL="").get("model").origin == "default"


@pytest.mark.parametrize(
    ("toml", "said"),
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
def test_mistakes_are_refused_with_a_cure(tmp_path: Path, home: Path, toml: str, said: str) -> None:
    (tmp_path / "celebctl.toml").write_text(toml)
    with pytest.raises(UsageProblem) as error:
        settings = read(tmp_path, home)
        for name in KNOWN:
            settings.get(name)
    assert said in error.value.hint


def test_numbers_may_come_as_text_from_the_environment(tmp_path: Path, home: Path) -> None:
    assert read(tmp_path, home, CELEBCTL_THREADS=" 3 ").number("threads") == 3
    with pytest.raises(UsageProblem, match="CELEBCTL_THREADS"):
        read(tmp_path, home, CELEBCTL_THREADS="three").number("threads")


def test_a_byte_order_mark_is_no_trouble(tmp_path: Path, home: Path) -> None:
    (tmp_path / "celebctl.toml").write_bytes(b'\xef\xbb\xbfmodel = "x"\r\n')
    assert read(tmp_path, home).text("model") == "x"


def test_files_that_are_not_text_are_named(tmp_path: Path, home: Path) -> None:
    (tmp_path / "celebctl.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageProblem, match=r"celebctl\.toml"):
        read(tmp_path, home)
