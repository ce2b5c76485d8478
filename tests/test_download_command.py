"""download and use: interrupted downloads continue, and only checked files are installed."""

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock
from model_fakes import COMMIT, FakeHub, fake_hub, model_index, use_hub, write_cache, write_model

from celebctl.cli import download as download_module
from celebctl.cli.console import CliConsole
from celebctl.cli.default_model import COLUMNS, use
from celebctl.cli.download import download as download_command
from celebctl.cli.error_handling import report_error
from celebctl.settings import Settings
from celebctl_models.checkpoints.hub_download import check_folder, fetch_model, install_model, plan_model
from celebctl_models.checkpoints.registry import installed_folder, locate
from celebctl_models.faces import packs
from celebctl_models.faces.download import download
from celebctl_models.faces.packs import Pack, PackFile
from celebctl_runtime.errors import (
    BusyError,
    CelebctlError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    SetupError,
)

NAME = "someone/model"
UNET = "unet/diffusion_pytorch_model.safetensors"
CONTENT = bytes(range(256)) * 5000
WHOLE: dict[str, Any] = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty machine: no models, no token, and no pauses between attempts."""
    for name in ("HF_TOKEN", "CELEBCTL_MODEL", "CELEBCTL_FACE_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("celebctl_models.faces.download._PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Generator[FakeHub]:
    with fake_hub() as running:
        running.models[NAME] = write_model(tmp_path / "published")
        running.files["/file.bin"] = CONTENT
        use_hub(monkeypatch, running.url)
        yield running


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The two commands as they are started from the command line."""
    app = typer.Typer()
    app.command("download")(download_command)
    app.command()(use)

    def started(*words: str | Path) -> Result:
        console, rest = CliConsole.from_argv([str(word) for word in words])
        try:
            code = int(app(rest, prog_name="celebctl", standalone_mode=False, obj=console) or 0)
        except Exception as error:
            code = report_error(error, console)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return started


# One file over HTTP.


def test_a_file_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    seen: list[int] = []
    path = tmp_path / "a" / "file.bin"
    download(f"{hub.url}/file.bin", path, **WHOLE, progress=lambda event: seen.append(event.step))
    assert path.read_bytes() == CONTENT and seen[-1] == len(CONTENT)
    assert [place.name for place in path.parent.iterdir()] == ["file.bin"]


def test_a_closed_connection_is_resumed(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut["/file.bin"] = [700_000, 300_000]
    download(f"{hub.url}/file.bin", tmp_path / "f", **WHOLE)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert hub.fetched("/file.bin") == ["", "bytes=700000-", "bytes=1000000-"]


def test_the_next_run_continues_an_incomplete_file(hub: FakeHub, tmp_path: Path) -> None:
    """The partial file of a failed download is where the next one starts."""
    hub.cut["/file.bin"] = [1000, *([0] * 9)]
    with pytest.raises(SetupError, match="closed") as caught:
        download(f"{hub.url}/file.bin", tmp_path / "f", **WHOLE)
    assert "continued" in caught.value.hint and not (tmp_path / "f").exists()
    hub.cut.clear()
    hub.asked.clear()
    download(f"{hub.url}/file.bin", tmp_path / "f", **WHOLE)
    assert hub.fetched("/file.bin") == ["bytes=1000-"] and (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT[:10], CONTENT + b"more"])
def test_a_server_without_ranges_and_a_part_too_long_start_over(hub: FakeHub, tmp_path: Path, left: bytes) -> None:
    hub.ranges = False
    (tmp_path / "f.part").write_bytes(left)
    download(f"{hub.url}/file.bin", tmp_path / "f", **WHOLE)
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT + b"more")
    download(f"{hub.url}/file.bin", tmp_path / "f", **WHOLE)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("promise", [{"size": 5}, {"sha256": "0" * 64}])
def test_wrong_bytes_are_never_installed(hub: FakeHub, tmp_path: Path, promise: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="not"):
        download(f"{hub.url}/file.bin", tmp_path / "f", **{**WHOLE, **promise})
    assert not (tmp_path / "f").exists() and not (tmp_path / "f.part").exists()


def test_server_errors_are_retried(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail["/file.bin"] = [503, 429, 502]
    download(f"{hub.url}/file.bin", tmp_path / "f", **WHOLE)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "problem", "reason"),
    [
        (404, NotFoundError, "download_moved"),
        (403, SetupError, "download_refused"),
        (501, SetupError, "download_refused"),
    ],
)
def test_other_http_errors_are_final(
    hub: FakeHub, tmp_path: Path, status: int, problem: type[CelebctlError], reason: str
) -> None:
    hub.fail["/file.bin"] = [status] * 5
    with pytest.raises(problem) as caught:
        download(f"{hub.url}/file.bin", tmp_path / "f", **WHOLE)
    assert caught.value.reason == reason and len(hub.asked) == 1


def test_no_network_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot download") as caught:
        download("http://127.0.0.1:9/file.bin", tmp_path / "f", **WHOLE)
    assert "network" in caught.value.hint


def test_one_process_downloads_a_file(hub: FakeHub, tmp_path: Path) -> None:
    lock = tmp_path / "home" / "locks" / "fetch.f.lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(BusyError, match="another process"):
        download(f"{hub.url}/file.bin", tmp_path / "f", **WHOLE)


# A model from the hub.


def test_a_model_is_planned_then_fetched_then_found(hub: FakeHub) -> None:
    plan = plan_model(NAME, "main")
    assert (plan.commit, plan.licence, plan.left) == (COMMIT, "mit", plan.size - _size(hub, "model_index.json"))
    assert not hub.fetched(UNET)
    seen: list[tuple[int, int]] = []
    folder = fetch_model(plan, lambda event: seen.append((event.step, event.total)))
    assert seen[-1] == (plan.size, plan.size) and seen == sorted(seen)
    assert (folder / UNET).read_bytes() == (hub.models[NAME] / UNET).read_bytes()
    assert (locate(NAME).kind, locate(NAME).path) == ("folder", folder)
    assert plan_model(NAME, "main").left == 0


def test_a_pinned_revision_is_requested(hub: FakeHub) -> None:
    assert fetch_model(plan_model(NAME, COMMIT)).name == COMMIT
    assert any(path.endswith(f"/revision/{COMMIT}") for _, path, _, _ in hub.asked)


def test_an_interrupted_model_keeps_its_complete_files(hub: FakeHub) -> None:
    hub.fail[UNET] = [403]
    with pytest.raises(SetupError):
        fetch_model(plan_model(NAME, "main"))
    first = {path for method, path, *_ in hub.asked if method == "GET"}
    hub.asked.clear()
    assert (fetch_model(plan_model(NAME, "main")) / UNET).is_file()
    assert hub.fetched(UNET) == [""]
    assert any(path.endswith("vae/config.json") for path in first) and not hub.fetched("vae/config.json")


def test_an_incomplete_snapshot_is_an_error(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a connection the hub client returns what its cache has of the snapshot."""
    plan = plan_model(NAME, "main")
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(SetupError, match="incomplete"):
        fetch_model(plan)


def test_a_damaged_file_in_the_cache_is_deleted(hub: FakeHub) -> None:
    folder = fetch_model(plan_model(NAME, "main"))
    (folder / UNET).resolve().write_bytes(bytes(_size(hub, UNET)))
    with pytest.raises(IntegrityError, match=UNET):
        fetch_model(plan_model(NAME, "main"))
    assert not (folder / UNET).exists()


def test_damaged_weights_do_not_stay_in_the_cache(hub: FakeHub) -> None:
    hub.lie[UNET] = bytes(_size(hub, UNET))
    with pytest.raises(IntegrityError, match="SHA-256"):
        fetch_model(plan_model(NAME, "main"))
    assert locate(NAME).kind == "hub"


def test_another_family_is_refused_by_its_index(hub: FakeHub) -> None:
    index = hub.models[NAME] / "model_index.json"
    index.write_text(json.dumps(model_index(text_encoder=["transformers", "T5EncoderModel"])))
    with pytest.raises(InvalidInputError, match="T5"):
        plan_model(NAME, "main")
    assert not hub.fetched(UNET)


def test_a_model_without_safetensors_is_refused(hub: FakeHub) -> None:
    (hub.models[NAME] / UNET).rename(hub.models[NAME] / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(InvalidInputError, match=UNET):
        plan_model(NAME, "main")


def test_an_unknown_repository_is_not_found(hub: FakeHub) -> None:
    with pytest.raises(NotFoundError, match="someone/else"):
        plan_model("someone/else", "main")


def test_offline_means_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SetupError, match="HF_HUB_OFFLINE") as caught:
        plan_model(NAME, "main")
    assert (caught.value.reason, caught.value.values) == ("offline", {"name": NAME}) and not hub.asked


def test_an_unreachable_hub_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(SetupError, match="cannot reach the hub") as caught:
        plan_model("org/sd", "main", name="sd")
    assert (caught.value.reason, caught.value.values) == ("no_network", {"name": "sd"})


# A model from a folder.


def test_a_folder_is_installed_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = write_model(tmp_path / "brought")
    (source / "unet" / "junk.bin").write_bytes(b"x")
    assert install_model(source, NAME) == installed_folder(NAME) == locate(NAME).path
    assert not (installed_folder(NAME) / "unet" / "junk.bin").exists()


def test_damaged_or_mixed_folders_leave_nothing_behind(tmp_path: Path) -> None:
    source = write_model(tmp_path / "brought")
    (source / "unet" / "config.json").write_text('{"in_channels": 9}')
    with pytest.raises(IntegrityError, match="in_channels 9"):
        install_model(source, "sd14")
    (source / UNET).write_bytes((source / UNET).read_bytes()[:-7])
    with pytest.raises(IntegrityError, match="damaged"):
        check_folder(source)
    (source / UNET).unlink()
    with pytest.raises(InvalidInputError, match=UNET):
        install_model(source, "sd14")
    assert not installed_folder("sd14").parent.exists() and locate("sd14").kind == "hub"


def test_a_known_model_must_have_the_stated_hashes(run: Run, tmp_path: Path) -> None:
    result = run("download", "sd15", "--from", write_model(tmp_path / "brought"), "--accept-licence")
    assert result.code == 5 and "SHA-256" in result.err
    assert list(installed_folder("sd15").parent.iterdir()) == []


@pytest.mark.parametrize("inside", ["", "hub", "models--someone--model"])
def test_a_model_is_installed_from_a_hub_cache(run: Run, tmp_path: Path, inside: str) -> None:
    cache = tmp_path / "usb" / ("hub" if inside == "hub" else "")
    write_cache(cache, NAME, write_model(tmp_path / "m"))
    given = tmp_path / "usb" / (inside if inside.startswith("models") else "")
    result = run("download", NAME, "--from", given, "--accept-licence", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["path"] == str(installed_folder(NAME)) and locate(NAME).kind == "folder"


def test_a_blob_with_another_hash_is_refused(run: Run, tmp_path: Path) -> None:
    snapshot = write_cache(tmp_path / "usb", NAME, write_model(tmp_path / "m"))
    blob = (snapshot / UNET).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\x7f")
    assert run("download", NAME, "--from", tmp_path / "usb", "--accept-licence").code == 5


# The command: licences, questions, documents.


def test_a_licence_must_be_accepted(hub: FakeHub, run: Run) -> None:
    """Without a terminal, the flag is required."""
    hub.licence = "creativeml-openrail-m"
    result = run("download", NAME, "--yes")
    assert result.code == 7 and f"celebctl download {NAME} --accept-licence" in result.err and not hub.fetched(UNET)
    assert run("download", NAME, "--accept-licence").code == 0
    assert locate(NAME).kind == "folder"


def test_a_free_licence_needs_no_acceptance(hub: FakeHub, run: Run) -> None:
    result = run("download", NAME)
    assert result.code == 0 and result.out.strip() == str(locate(NAME).path)
    assert f"next: celebctl use {NAME}" in result.err


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_one_question_is_asked(
    hub: FakeHub, run: Run, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    hub.licence = "openrail++"
    questions: list[str] = []

    def confirm(question: str, err: bool) -> bool:
        questions.append(question)
        return answer

    monkeypatch.setattr(download_module.typer, "confirm", confirm)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert run("download", NAME).code == (0 if answer else 7)
    assert len(questions) == 1 and "icence" in questions[0] and "download" in questions[0]
    assert (locate(NAME).kind == "folder") is answer


def test_a_dry_run_fetches_nothing(hub: FakeHub, run: Run) -> None:
    result = run("download", NAME, "--dry-run", "--json")
    document = json.loads(result.out)
    assert result.code == 0 and document["licence"]["name"] == "mit"
    unet = next(file for file in document["files"] if file["path"] == UNET)
    content = (hub.models[NAME] / UNET).read_bytes()
    assert unet == {"path": UNET, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "here": False}
    assert not hub.fetched(UNET)


def test_local_models_are_not_downloaded(run: Run, tmp_path: Path) -> None:
    assert run("download", "mini").code == 0
    folder = write_model(tmp_path / "mine")
    result = run("download", folder)
    assert result.code == 2 and f"celebctl use {folder}" in result.err
    assert run("download", "flux").code == 3
    assert run("download", "mini", "--from", tmp_path / "nowhere").code == 4


# Face models.


@pytest.fixture
def pack(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Pack:
    """A published archive of two small files."""
    contents = {"det.onnx": b"detector" * 1000, "rec.onnx": b"recogniser" * 1000}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    detector, recogniser = (PackFile(n, len(c), hashlib.sha256(c).hexdigest()) for n, c in contents.items())
    archived = buffer.getvalue()
    digest = hashlib.sha256(archived).hexdigest()
    small = Pack("small", "two files", (detector, recogniser), len(archived), digest)
    monkeypatch.setitem(packs.PACKS, "small", small)
    monkeypatch.setattr("celebctl_models.faces.packs._RELEASES", hub.url)
    hub.files["/v0.7/small.zip"] = archived  # only the older address has it
    return small


def test_a_pack_is_downloaded_after_its_licence_is_accepted(hub: FakeHub, run: Run, pack: Pack, tmp_path: Path) -> None:
    refused = run("download", "small")
    assert refused.code == 7 and pack.licence in refused.err and not hub.asked
    hub.cut["/v0.7/small.zip"] = [4000]
    result = run("download", "small", "--accept-licence")
    assert result.code == 0 and "celebctl learn" in result.err
    assert Path(result.out.strip()) == packs.find_pack("small", tmp_path / "home")
    assert hub.fetched("/v0.7/small.zip") == ["", "bytes=4000-"]
    assert packs.accepted_at("small", tmp_path / "home")
    again = run("download", "small")
    assert again.code == 0 and "already" in again.err
    assert not list((tmp_path / "home" / "cache").iterdir())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pack_is_installed_from_a_folder(hub: FakeHub, run: Run, pack: Pack, tmp_path: Path, zipped: bool) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    content = hub.files["/v0.7/small.zip"]
    if zipped:
        (usb / "small.zip").write_bytes(content)
    else:
        zipfile.ZipFile(io.BytesIO(content)).extractall(usb)
    assert run("download", "small", "--from", usb, "--accept-licence").code == 0
    assert packs.find_pack("small", tmp_path / "home") and not hub.asked


def test_a_wrong_archive_is_refused(hub: FakeHub, run: Run, pack: Pack, tmp_path: Path) -> None:
    hub.files["/v0.7/small.zip"] = bytes(pack.size)
    assert run("download", "small", "--accept-licence").code == 5
    assert not (tmp_path / "home" / "faces").exists()


def test_a_free_pack_of_single_files_is_downloaded_without_a_licence_question(
    hub: FakeHub, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contents = {"det.onnx": b"detector" * 1000, "rec.onnx": b"recogniser" * 1000}
    files = tuple(
        PackFile(name, len(content), hashlib.sha256(content).hexdigest(), (f"{hub.url}/zoo/{name}",))
        for name, content in contents.items()
    )
    monkeypatch.setitem(packs.PACKS, "free", Pack("free", "two files", files, licence="MIT", restricts=False))
    hub.files |= {f"/zoo/{name}": content for name, content in contents.items()}
    hub.files["/zoo/rec.onnx"] = b"other" * 2000  # damaged: only the good file is kept
    assert run("download", "free").code == 5 and not (tmp_path / "home" / "faces").exists()
    hub.files["/zoo/rec.onnx"] = contents["rec.onnx"]
    result = run("download", "free", "--json")
    assert result.code == 0 and json.loads(result.out)["bytes_left"] == 0
    folder = packs.find_pack("free", tmp_path / "home")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents
    assert hub.fetched("/zoo/det.onnx") == [""] and not packs.accepted_at("free", tmp_path / "home")
    assert "already" in run("download", "free").err and not list((tmp_path / "home" / "cache").iterdir())


# use.


def test_use_sets_the_model_and_suggests_the_next_command(run: Run, tmp_path: Path) -> None:
    result = run("use", "sd15", "--json")
    assert result.code == 0 and "next: celebctl download sd15" in result.err
    assert json.loads(result.out) == {"model": "sd15", "path": str(tmp_path / "home/config.toml"), "here": False}
    assert Settings.read().text("model") == "sd15"
    assert "next: celebctl learn" in run("use", "mini").err
    assert "celebctl download buffalo_l" in run("use", write_model(tmp_path / "mine")).err
    assert Settings.read().text("model") == str(tmp_path / "mine")


def test_use_refuses_what_it_cannot_find(run: Run) -> None:
    assert run("use", "minni").code == 4 and run("use", "flux").code == 3
    assert Settings.read().get("model").origin == "default"


def test_use_warns_when_another_setting_wins(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELEBCTL_MODEL", "mini")
    assert "CELEBCTL_MODEL sets the model mini" in run("use", "sd15").err


def test_use_without_a_model_shows_the_table(run: Run) -> None:
    document = json.loads(run("use", "--json").out)
    assert (document["model"], document["origin"]) == ("mini", "default")
    states = {row["name"]: row["state"] for row in document["known"]}
    assert states["mini"] == "bundled" and states["sdxl"] == "not here"
    model, origin, heading, *rows = run("use").out.splitlines()
    assert (model, origin) == ("model: mini", "origin: default")
    assert heading.split("\t") == list(COLUMNS) and [row.split("\t")[0] for row in rows] == [*states]


def _size(hub: FakeHub, path: str) -> int:
    return (hub.models[NAME] / path).stat().st_size
