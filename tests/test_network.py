"""No network unless it is asked for, no redirect that leaves https, and no token in any output."""

import io
import os
import subprocess
import sys
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.response import addinfourl

import pytest
from console_fakes import CommandLine
from model_fakes import fake_hub, use_hub, write_model

from celebctl_models.checkpoints.hub_download import plan_model, refuse_insecure_redirect
from celebctl_models.faces.download import download, require_https
from celebctl_runtime.errors import CelebctlError, SetupError
from celebctl_runtime.redaction import without_token

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUv"
SCRIPT = """
import socket, sys
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        asked.append((event, arguments[-1 if event == "socket.connect" else 0]))
        raise OSError("blocked")
sys.addaudithook(watch)
from celebctl.cli import main
for words in COMMANDS:
    code = main(words)
    assert code == 0, (words, code)
assert not asked, asked
try:
    socket.create_connection(("localhost", 9))
except OSError:
    pass
assert asked, "the hook works"
"""


def run_offline(*commands: list[str]) -> None:
    script = SCRIPT.replace("COMMANDS", repr(list(commands)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_learning_and_reading_ask_for_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    run_offline(
        ["sample-photo", "alice.png", "--seed", "7"],
        ["check", "alice.png"],
        ["learn", "alice.png", "--instant", "--consent", "synthetic"],
        ["list"],
        ["show", "alice", "--card", "card.png"],
        ["forget", "alice"],
    )


@pytest.mark.slow
def test_learning_exporting_drawing_and_verifying_ask_for_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    run_offline(
        ["sample-photo", "alice.png", "--seed", "7"],
        ["learn", "alice.png", "--steps", "2", "--consent", "synthetic"],
        ["export"],
        ["gen", "alice on the beach", "--seed", "1", "--steps", "2", "-o", "beach.png"],
        ["regen", "beach.png"],
        ["verify", "beach.png"],
        ["doctor"],
    )


# Redirects.


def test_a_download_follows_no_redirect_out_of_https(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path))

    class Redirecting(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            headers = Message()
            headers["Location"] = "http://elsewhere.example/file?key=secret"
            answer: Any = addinfourl(io.BytesIO(), headers, req.full_url, 302)
            answer.msg = "Found"
            return answer

    monkeypatch.setattr(urllib.request, "HTTPSHandler", Redirecting)
    with pytest.raises(SetupError) as raised:
        download("https://here.example/file", tmp_path / "file", size=1, sha256="0" * 64)
    assert raised.value.reason == "insecure_redirect" and "secret" not in raised.value.problem


@pytest.mark.parametrize("target", ["http://b/c", "ftp://b/c", "HTTP://b"])
def test_only_https_follows_https(target: str) -> None:
    with pytest.raises(SetupError):
        require_https("https://a/c", target)
    require_https("https://a/c", "https://b/c")
    require_https("http://localhost/c", target)  # a mirror without encryption was the user's choice


def test_the_hub_client_follows_no_redirect_out_of_https(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import get_session

    httpx: Any = sys.modules[type(get_session()).__module__.partition(".")[0]]  # the version that the client uses

    def answer(request: Any) -> Any:
        assert request.url.scheme == "https"
        return httpx.Response(302, headers={"Location": "http://elsewhere.example/"})

    client = httpx.Client(
        transport=httpx.MockTransport(answer),
        follow_redirects=True,
        event_hooks={"response": [refuse_insecure_redirect]},
    )
    with client, pytest.raises(SetupError) as raised:
        client.get("https://here.example/")
    assert raised.value.reason == "insecure_redirect"
    with fake_hub() as hub:
        use_hub(monkeypatch, hub.url)
        hub.models["someone/model"] = write_model(tmp_path / "model")
        plan_model("someone/model", "main")
        session: Any = get_session()
        assert session.event_hooks["response"].count(refuse_insecure_redirect) == 1


# The token.


def test_a_token_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    assert without_token(f"b'Bearer {TOKEN}'") == "b'Bearer ***'"
    monkeypatch.setenv("HF_TOKEN", "a")
    assert without_token("a cat") == "a cat"


@pytest.mark.parametrize("token", [TOKEN, f"{TOKEN}\u00e9", f"{TOKEN} x"])
def test_no_error_shows_the_token(
    console: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with fake_hub() as hub:
        use_hub(monkeypatch, hub.url)
        result = console("download", "someone/model", "--debug")
        sent = [authorization for *_, authorization in hub.asked]
    assert result.code in (4, 6) and TOKEN not in result.err + result.out
    assert token != TOKEN or any(TOKEN in one for one in sent), "it was sent"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"Illegal header value b'Bearer {token}'")

    monkeypatch.setattr("celebctl.library.Library.entries", fail)
    for words in (("list",), ("list", "--debug"), ("list", "--json")):
        result = console(*words)
        assert result.code == 1 and TOKEN not in result.err + result.out and "***" in result.err


def test_a_hub_error_that_quotes_the_token_is_a_message_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def fail(*_: object, **__: object) -> None:
        raise ValueError(f"Illegal header value b'Bearer {TOKEN}'")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(CelebctlError) as raised:
        plan_model("someone/model", "main")
    assert TOKEN not in raised.value.problem and "***" in raised.value.problem
