"""Content credentials: signed, read back, and what breaks them."""

import io
import stat
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from celebctl.library import Library
from celebctl.marks import user_marks
from celebctl_runtime.certificate import local_key
from celebctl_runtime.credentials import FORMATS, Ingredient, Signer, has_credentials, load_c2pa, read_credentials
from celebctl_runtime.errors import SetupError, UsageError
from celebctl_runtime.picture import GeneratedImage, Marks, encode_image
from celebctl_runtime.request import Request

pytest.importorskip("c2pa")


def encoded(format: str, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "certificate.pem"
    local_key(path)
    return path


@pytest.fixture(scope="module")
def signer(key_file: Path) -> Signer:
    return Signer(local_key(key_file))


@pytest.mark.parametrize("format", FORMATS)
def test_a_signed_file_says_how_it_came_about(signer: Signer, format: str) -> None:
    content = encoded(format)
    signed = signer.sign(content, format, "alice")
    found = read_credentials(signed)
    assert found is not None and (found.state, found.problems) == ("valid", ())
    assert found.self_signed and found.generated and found.actions == ("c2pa.created",)
    assert found.generator.startswith("celebctl ") and not found.forbids_training
    with Image.open(io.BytesIO(signed)) as one, Image.open(io.BytesIO(content)) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other))
    assert has_credentials(signed) and not has_credentials(content)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_without_credentials_has_none(format: str) -> None:
    assert read_credentials(encoded(format)) is None


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff\xe0"])
def test_what_is_no_picture_has_none_or_invalid_ones(content: bytes) -> None:
    found = read_credentials(content)
    assert found is None or (found.state == "invalid" and found.problems)


def test_a_changed_pixel_breaks_the_signature(signer: Signer) -> None:
    signed = bytearray(signer.sign(encoded("PNG"), "PNG", "alice"))
    signed[len(signed) - 200] ^= 1
    found = read_credentials(bytes(signed))
    assert found is not None and found.state == "invalid" and "assertion.dataHash.mismatch" in found.problems


def test_saving_again_loses_them(signer: Signer) -> None:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(signer.sign(encoded("PNG"), "PNG", "alice"))) as image:
        image.save(buffer, "PNG")
    assert read_credentials(buffer.getvalue()) is None


def test_the_chain_of_this_machine_is_trusted_where_it_is_given(signer: Signer, key_file: Path) -> None:
    found = read_credentials(signer.sign(encoded("PNG"), "PNG", "alice"), [local_key(key_file).chain])
    assert found is not None and found.state == "trusted"


def test_what_a_picture_was_made_from_is_an_ingredient(signer: Signer) -> None:
    source = signer.sign(encoded("JPEG", 1), "JPEG", "photo")
    parts = [Ingredient(source, "JPEG", "photo.jpg"), Ingredient(encoded("PNG", 2), "PNG", "mask.png")]
    found = read_credentials(signer.sign(encoded("PNG"), "PNG", "alice", parts))
    assert found is not None and found.state == "valid" and found.ingredients == ("photo.jpg", "mask.png")
    assert found.actions == ("c2pa.opened", "c2pa.edited", "c2pa.placed")
    assert found.source_type == "compositeWithTrainedAlgorithmicMedia" and found.generated


def test_an_ingredient_with_damaged_credentials_is_left_out(signer: Signer, caplog: pytest.LogCaptureFixture) -> None:
    store, picture = b"caBXjumb garbage c2pa", encoded("PNG", 1)
    chunk = struct.pack(">I", len(store) - 4) + store + struct.pack(">I", zlib.crc32(store))
    parts = [Ingredient(picture[:33] + chunk + picture[33:], "PNG", "photo.png")]
    found = read_credentials(signer.sign(encoded("PNG"), "PNG", "alice", parts))
    assert found is not None and (found.state, found.problems, found.ingredients) == ("valid", (), ())
    assert found.actions == ("c2pa.created", "c2pa.edited") and "photo.png" in caplog.text
    assert found.source_type == "compositeWithTrainedAlgorithmicMedia"
    other = read_credentials(signer.sign(encoded("PNG"), "PNG", "alice", [Ingredient(b"GIF89a", "GIF", "a.gif")]))
    assert other == found


def test_an_image_that_cannot_be_signed_is_saved_where_credentials_are_optional(
    signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise SetupError("refused", "none", reason="signing_failed")

    monkeypatch.setattr(signer, "sign", fail)
    image = GeneratedImage(Image.new("RGB", (8, 8)), Request("alice"))
    content = encode_image(image, marks=Marks(None, signer, unsigned_on_failure=True))
    assert read_credentials(content) is None
    with pytest.raises(SetupError):
        encode_image(image, marks=Marks(None, signer))


def test_a_native_library_that_does_not_load_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c2pa.py").write_text("raise RuntimeError('libc2pa_c.so: wrong architecture')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "c2pa")
    with pytest.raises(SetupError) as caught:
        load_c2pa()
    assert caught.value.reason == "extra_unusable"
    library = Library(tmp_path / "library")
    monkeypatch.setenv("CELEBCTL_CREDENTIALS", "auto")
    assert user_marks(library).signer is None
    monkeypatch.setenv("CELEBCTL_CREDENTIALS", "on")
    with pytest.raises(SetupError):
        user_marks(library)


def test_the_key_is_generated_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "certificate.pem"
    first, second = local_key(path), local_key(path)
    assert first == second and b"PRIVATE" not in first.chain and "PRIVATE" not in repr(first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "certificate_missing"),
        (b"", "certificate_unusable"),
        (b"-----BEGIN PRIVATE KEY-----\n", "certificate_unusable"),
    ],
)
def test_a_key_that_cannot_sign_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    from celebctl_runtime.certificate import load_key

    path = tmp_path / "mine.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_key(path, path)
    assert caught.value.reason == reason


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, key_file: Path) -> None:
    from celebctl_runtime.certificate import load_key

    local_key(tmp_path / "other.pem")
    with pytest.raises(UsageError) as caught:
        load_key(key_file, tmp_path / "other.pem")
    assert caught.value.reason == "certificate_unusable"


def test_the_owners_refusal_of_training_is_read(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    from celebctl_runtime import credentials

    made = credentials._manifest  # pyright: ignore[reportPrivateUsage]

    def manifest(use: str) -> None:
        def with_assertion(*arguments: object) -> dict[str, object]:
            document = made(*arguments)  # pyright: ignore[reportArgumentType]
            entries = {"cawg.ai_generative_training": {"use": use}}
            document["assertions"].append({"label": "cawg.training-mining", "data": {"entries": entries}})
            return document

        monkeypatch.setattr(credentials, "_manifest", with_assertion)

    for use, forbidden in (("notAllowed", True), ("allowed", False)):
        manifest(use)
        found = read_credentials(signer.sign(encoded("JPEG"), "JPEG", "photo"))
        assert found is not None and found.forbids_training is forbidden
