"""Tiny model folders in the diffusers layout, and a hub server that offers them, without torch.

The hub implements the part of HTTP that its client and `celebctl download` use, on 127.0.0.1. It can truncate
responses, fail, ignore ranges and send wrong bytes.
"""

import hashlib
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

COMMIT = "c0ffee" + "0" * 34
BLOB = "0" * 40


def model_index(**parts: Any) -> dict[str, Any]:
    """The model_index.json of a Stable Diffusion 1.x model, with other parts on request."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **parts,
    }


def write_model(folder: Path, seed: int = 0, width: int = 8) -> Path:
    """A whole model folder of a few kilobytes; its weights fit its configs, and mean nothing."""
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

    rng = np.random.default_rng(seed)

    def weights(path: str, **tensors: tuple[int, ...]) -> None:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        arrays = {name.replace("__", "."): rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
        save_file(arrays, str(place))

    weights("text_encoder/model.safetensors", text_model__embeddings__token_embedding__weight=(600, width))
    weights("unet/diffusion_pytorch_model.safetensors", conv_in__weight=(16, 4, 3, 3), time__weight=(64, 64))
    weights("vae/diffusion_pytorch_model.safetensors", post_quant_conv__weight=(4, 4, 1, 1))
    texts: dict[str, object] = {
        "model_index.json": model_index(),
        "text_encoder/config.json": {"hidden_size": width},
        "unet/config.json": {"in_channels": 4, "sample_size": 64, "cross_attention_dim": 768},
        "vae/config.json": {"latent_channels": 4, "block_out_channels": [1, 2, 3, 4]},
        "scheduler/scheduler_config.json": {"prediction_type": "epsilon"},
        "tokenizer/vocab.json": {"a</w>": 0},
        "tokenizer/merges.txt": "#version: 0.2",
    }
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def write_cache(cache: Path, source: str, model: Path, commit: str = COMMIT) -> Path:
    """The folder `model` as a snapshot in a hub cache, large files as links to blobs named by SHA-256."""
    repository = cache / f"models--{source.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        place = snapshot / path.relative_to(model)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(blob)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


@dataclass
class FakeHub:
    """What the server offers and how it behaves; `asked` keeps (method, path, range, authorization)."""

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict[str, Path])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])  # plain downloads by path
    licence: str | None = "mit"
    cut: dict[str, list[int]] = field(default_factory=dict[str, list[int]])  # end of path -> bytes before each cut
    fail: dict[str, list[int]] = field(default_factory=dict[str, list[int]])  # end of path -> answers before it works
    lie: dict[str, bytes] = field(default_factory=dict[str, bytes])  # end of path -> other bytes
    ranges: bool = True
    redirect: str = ""  # other base url for large files
    asked: list[tuple[str, str, str, str]] = field(default_factory=list[tuple[str, str, str, str]])

    def fetched(self, end: str) -> list[str]:
        """The ranges of all GETs for paths that end so; "" for a whole file."""
        return [span for method, path, span, _ in self.asked if method == "GET" and path.endswith(end)]


def _large(path: str) -> bool:
    return path.endswith(".safetensors")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        path = unquote(urlparse(self.path).path)
        headers = cast(Any, self.headers)
        self.hub.asked.append(
            (self.command, path, str(headers.get("Range", "")), str(headers.get("Authorization", "")))
        )
        failures = _pick(self.hub.fail, path)
        if send and failures:
            self._send(failures.pop(0), b"", {}, send)
        elif path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"), send)
        else:
            self._file(path, send)

    def _describe(self, rest: str, send: bool) -> None:
        name, tree, _ = rest.partition("/tree/")
        name = name.partition("/revision/")[0]
        folder = self.hub.models.get(name)
        if folder is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, send)
            return
        if tree:
            listing = [_tree_entry(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
            self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, send)
            return
        siblings = [_sibling(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
        info = {"id": name, "sha": COMMIT, "siblings": siblings, "cardData": {"license": self.hub.licence}}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, send)

    def _file(self, path: str, send: bool) -> None:
        extra: dict[str, str] = {}
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)", path)
        if match and match[1] in self.hub.models and (self.hub.models[match[1]] / match[2]).is_file():
            content = (self.hub.models[match[1]] / match[2]).read_bytes()
            digest = hashlib.sha256(content).hexdigest() if _large(path) else hashlib.sha1(content).hexdigest()
            extra = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
            if _large(path):
                extra |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            if (
                _large(path)
                and send
                and self.hub.redirect
                and self.hub.redirect not in f"http://{self.headers['Host']}"
            ):
                self._send(302, b"", {"Location": self.hub.redirect + self.path}, send)
                return
        elif path in self.hub.files:
            content = self.hub.files[path]
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, send)
            return
        for end, other in self.hub.lie.items():
            content = other if path.endswith(end) and send else content
        self._content(path, content, extra, send)

    def _content(self, path: str, content: bytes, extra: dict[str, str], send: bool) -> None:
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", str(cast(Any, self.headers).get("Range", "")))
        if wanted and self.hub.ranges and send:
            start, status = int(wanted[1]), 206
            if start >= len(content):
                self._send(416, b"", {}, send)
                return
            extra = {**extra, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        cuts = _pick(self.hub.cut, path)
        keep = cuts.pop(0) if send and cuts else None
        self._send(status, content[start:], extra, send, keep)

    def _send(self, status: int, body: bytes, extra: dict[str, str], send: bool, keep: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**extra, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(body if keep is None else body[:keep])
            self.wfile.flush()
        if keep is not None:
            self.close_connection = True


def _pick(table: dict[str, list[int]], path: str) -> list[int]:
    nothing: list[int] = []
    return next((values for end, values in table.items() if path.endswith(end)), nothing)


def _sibling(folder: Path, path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    name = path.relative_to(folder).as_posix()
    lfs = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 135}
    return {"rfilename": name, "size": len(content), "blobId": BLOB, **({"lfs": lfs} if _large(name) else {})}


def _tree_entry(folder: Path, path: Path) -> dict[str, Any]:
    entry = _sibling(folder, path)
    lfs = {"lfs": {"oid": entry["lfs"]["sha256"], **entry["lfs"]}} if "lfs" in entry else {}
    return {"type": "file", "path": entry["rfilename"], "oid": BLOB, "size": entry["size"], **lfs}


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Point the hub client, which reads its environment once, at another address."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def fake_hub() -> Generator[FakeHub]:
    """A hub that listens for the length of the block."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
