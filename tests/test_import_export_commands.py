"""`celebctl export-embedding`, `import` and `inspect`: identities leave, come back, and fit the model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from bundle_fakes import write_bundle
from conftest import WIDTH, make_identity
from PIL import Image
from safetensors.numpy import save
from textual_inversion_fakes import FACTS, ROWS, XL_ROWS, Evil, Rows, alice, alice_xl, release_files, torch_file

from celebctl.basis.basis import CelebBasis
from celebctl.cli import main
from celebctl.library import Library
from celebctl.textual_inversion import embedding_file, person_of, read_contents
from celebctl_runtime.errors import IntegrityError
from celebctl_runtime.identity import Identity
from celebctl_runtime.picture import GeneratedImage, save_image
from celebctl_runtime.request import Request

if TYPE_CHECKING:
    from celebctl_models.checkpoints.diffusion import DiffusionParts

torch: Any = pytest.importorskip("torch")


# From rows to an identity.


@pytest.fixture(scope="module")
def doll(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a list of names of its own."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("models") / "doll"))
    names = ["ann anna", "anna bob", "bob alice", "alice ann", "person chess", "chess person"]
    (folder / "names.txt").write_text("\n".join(names))
    (folder / "celebctl.json").write_text(json.dumps({"name": "doll", "names": "names.txt"}))
    return folder


@pytest.fixture(scope="module")
def doll_basis(doll: Path) -> tuple[DiffusionParts, CelebBasis]:
    from celebctl.basis.basis import build_basis
    from celebctl_models.checkpoints.diffusion import load_parts

    parts = load_parts(doll)
    return parts, build_basis(parts)


@pytest.mark.parametrize(("inside", "outside", "share"), [(1, 0, 0.0), (0, 1, 1.0), (3, 4, 16 / 25)])
def test_rows_are_kept_and_the_share_outside_the_basis_is_recorded(
    doll_basis: tuple[DiffusionParts, CelebBasis], inside: float, outside: float, share: float
) -> None:
    parts, basis = doll_basis
    components = basis.components[0]
    outside_rows = np.random.default_rng(5).normal(size=(2, WIDTH))
    outside_rows -= np.einsum("jd,jkd,jke->je", outside_rows, components, components)  # nothing of it in the basis
    outside_rows /= np.linalg.norm(outside_rows, axis=1, keepdims=True)
    rows = (basis.mean[0] + inside * components[:, 0] + outside * outside_rows).astype(np.float32)
    person = person_of([rows], "ann", parts, basis, {"origin": "imported"})
    np.testing.assert_array_equal(person.embeddings[0], rows)
    wanted = np.zeros_like(person.coefficients[0])
    wanted[:, 0] = inside
    np.testing.assert_allclose(person.coefficients[0], wanted, atol=1e-4)
    assert float(person.provenance["outside_basis"]) == pytest.approx(share, abs=1e-3)
    assert (person.basis_hash, person.table_hash, person.family) == (basis.hash, parts.table_hash, parts.family)


def test_another_width_is_another_model(doll_basis: tuple[DiffusionParts, CelebBasis]) -> None:
    for rows, family in (((np.ones((2, 1024), np.float32),), "2.x"), ((ROWS, XL_ROWS), "XL")):
        with pytest.raises(IntegrityError) as caught:
            person_of(rows, "ann", *doll_basis, {})
        assert caught.value.reason == "model_mismatch" and family in str(caught.value.values["family"])


# The commands.


class Shell:
    """The command line in an empty folder, with an empty library and the tiny model as the default."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.library, self._capsys = folder, Library(), capsys

    def __call__(self, *words: str | Path) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        return code, out, err

    def answer(self, *words: str | Path) -> Any:
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    def refuses(self, code: int, problem: str, *words: str | Path) -> None:
        found, out, err = self(*words)
        assert found == code and not out, err
        assert f"error: {problem}" in err or problem in err
        assert "hint: " in err and "Traceback" not in err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, doll: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.setenv("CELEBCTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CELEBCTL_MODEL", str(doll))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Shell(tmp_path / "here", capsys)


def test_export_embedding_writes_to_a_file_or_a_folder(shell: Shell) -> None:
    shell.library.save(alice())
    code, out, err = shell("export-embedding", "alice", "--to", "comfyui")
    assert (code, out) == (0, "alice.safetensors\n") and "embedding:alice" in err
    shell.refuses(2, "alice.safetensors", "export-embedding", "alice")
    assert shell("export-embedding", "alice", "--force", "--to", "diffusers")[0] == 0
    assert shell("export-embedding", "alice", "-o", "people")[1].strip() == str(Path("people/alice.safetensors"))
    assert shell("export-embedding", "alice", "-o", "x.safetensors")[1] == "x.safetensors\n"
    assert read_contents(Path("alice.safetensors")).name == "<alice>"
    shell.refuses(2, "x.pt", "export-embedding", "alice", "-o", "x.pt")
    shell.refuses(2, "midjourney", "export-embedding", "alice", "--to", "midjourney", "-o", "y.safetensors")
    shell.refuses(4, "'bob'", "export-embedding", "bob")
    assert not Path("y.safetensors").exists()


def test_the_use_in_other_programs_is_printed(shell: Shell, doll_basis: tuple[DiffusionParts, CelebBasis]) -> None:
    shell.library.save(alice_xl())
    _, _, err = shell("export-embedding", "alice", "--to", "diffusers")
    assert "text_encoder=pipe.text_encoder_2" in err and "note" not in err
    shell.library.save(replace(alice_xl(), name="eve", family="sd3"))
    assert "--to comfyui" in shell("export-embedding", "eve", "--to", "diffusers")[2]
    assert "embedding:eve" in shell("export-embedding", "eve", "--force", "--to", "comfyui")[2]
    shell.library.save(make_identity(doll_basis[0], "ann", seed=1))
    assert "note: webui supports" in shell("export-embedding", "ann")[2]
    assert 'pipe.load_textual_inversion("ann' in shell("export-embedding", "ann", "--force", "--to", "diffusers")[2]


def test_exporting_and_importing_keeps_the_embeddings(
    shell: Shell, doll_basis: tuple[DiffusionParts, CelebBasis]
) -> None:
    ann = make_identity(doll_basis[0], "ann", seed=1)
    shell.library.save(ann)
    shell("export-embedding", "ann", "--to", "invoke", "-o", "somebody.safetensors")
    shell.refuses(2, "'ann' is taken", "import", "somebody.safetensors")
    assert shell.library.load("ann") == ann
    shell("rm", "ann")
    report = shell.answer("import", "somebody.safetensors")
    back = shell.library.load("ann")
    np.testing.assert_array_equal(back.embeddings[0], ann.embeddings[0])
    assert report["provenance"]["origin"] == "imported" and 0 < float(report["provenance"]["outside_basis"]) <= 1
    assert report["digest"] == back.digest and Path(report["path"]).is_file()
    assert shell("import", "somebody.safetensors", "--force")[0] == 0


def test_the_name_comes_from_the_file_or_must_be_given(shell: Shell) -> None:
    rows = np.random.default_rng(2).normal(size=(2, WIDTH)).astype(np.float32)
    names = {"bob.safetensors": "emb_params", "learned_embeds.safetensors": "<carol>", "Mr X!.safetensors": "*"}
    for file, key in names.items():
        Path(file).write_bytes(save({key: rows}))
        assert shell("import", file)[0] == 0
    assert shell.library.names() == ["bob", "carol", "mr_x"]
    for file in ("learned_embeds-steps-500.safetensors", "id_embedding_000.safetensors"):
        Path(file).write_bytes(save({"emb_params": rows}))
        shell.refuses(2, "cannot derive a name", "import", file)
    assert shell("import", "id_embedding_000.safetensors", "--name", "Dora")[0] == 0
    shell.refuses(2, "'and'", "import", "id_embedding_000.safetensors", "--name", "and")


def test_an_identity_is_imported_for_its_own_model(shell: Shell, doll: Path) -> None:
    """It needs no model to be opened, unless one is asked for."""
    alice().save(Path("a.safetensors"))
    shell.refuses(5, "another model (sd1-cccccccc)", "import", "a.safetensors", "--model", doll)
    assert not shell.library.names()
    report = shell.answer("import", "a.safetensors", "--name", "zoe")
    assert report["name"] == "zoe" and report["model_key"] == "sd1-cccccccc"
    assert shell.library.load("zoe") == alice().renamed("zoe")


def test_files_of_the_release_are_imported(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    basis = torch_file(Path("celeb_basis.pt"), torch.randn(2, 6, WIDTH))
    file = torch_file(Path("id_coefficient_000.pt"), torch.randn(2, 1, 5))
    shell.refuses(2, "need the basis", "import", file, "--name", "ann")
    report = shell.answer("import", file, "--name", "ann", "--basis", basis)
    assert report["format"] == "Celeb Basis coefficients" and shell.library.names() == ["ann"]
    assert Path(report["path"]).suffix == ".safetensors"


def test_another_text_encoder_is_noted(shell: Shell, doll_basis: tuple[DiffusionParts, CelebBasis]) -> None:
    rows = make_identity(doll_basis[0], "ann", seed=1).embeddings
    outside_rows = Identity("ann", (rows[0][:, :4],), rows, family="sd", **FACTS)
    Path("ann.safetensors").write_bytes(embedding_file(outside_rows, "webui"))
    code, _, err = shell("import", "ann.safetensors")
    assert code == 0 and "note: ann.safetensors was made for another text encoder" in err


def people(library: Library) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (library.root / "identities").rglob("*") if path.is_file()}


def test_bad_files_have_their_codes_and_nothing_is_lost(shell: Shell) -> None:
    shell.library.save(alice())
    before = people(shell.library)
    Path("text.txt").write_text("hello")
    Path("wide.safetensors").write_bytes(save({"emb_params": ROWS}))
    Path("nan.safetensors").write_bytes(save({"emb_params": ROWS * np.nan}))
    Path("one.safetensors").write_bytes(save({"emb_params": ROWS[:1]}))
    Path("cut.safetensors").write_bytes(embedding_file(alice(), "webui")[:-1])
    torch_file(Path("evil.pt"), {"a": Evil(Path("harm"))})
    expected = {"gone.pt": 4, "text.txt": 3, "wide.safetensors": 5, "nan.safetensors": 5, "one.safetensors": 3}
    for file, code in {**expected, "cut.safetensors": 5, "evil.pt": 5, ".": 4}.items():
        shell.refuses(code, "", "import", file, "--name", "bob")
    for file in ("cut.safetensors", "evil.pt"):
        shell.refuses(5, "", "inspect", file)
    shell.refuses(4, "gone.pt", "inspect", "gone.pt")
    assert not Path("harm").exists()
    assert people(shell.library) == before


def test_an_imported_person_is_added_to_the_bundle(shell: Shell, exported_copy: Path) -> None:
    """The bundle of the same token table, wherever the person came from."""
    from celebctl_runtime.bundle.bundle import Bundle

    home = shell.library.root / "bundles" / "tiny"
    home.parent.mkdir(parents=True)
    shutil.copytree(exported_copy, home)
    Path("eve.safetensors").write_bytes(save({"emb_params": np.ones((2, WIDTH), np.float32)}))
    code, _, err = shell("import", "eve.safetensors")
    assert code == 0 and "celebctl gen" in err
    assert "eve" in Bundle.open(home).names


# inspect


def test_inspect_knows_every_kind_of_file(shell: Shell) -> None:
    alice().save(Path("identity.safetensors"))
    Path("xl.safetensors").write_bytes(embedding_file(alice_xl(), "webui"))
    release_files(Path())
    bundle = write_bundle(Path("bundle"))
    save_image(
        GeneratedImage(Image.new("RGB", (8, 8)), Request("alice smiling", seed=3), {"model": "toy"}), Path("a.png")
    )
    Image.new("RGB", (8, 8)).save("plain.png")
    Path("text.txt").write_text("hello")
    kinds = {
        "identity.safetensors": "identity",
        "xl.safetensors": "embedding",
        "celeb_basis.pt": "basis",
        "id_coefficient_000.pt": "coefficients",
        "bundle": "bundle",
        "bundle/manifest.json": "bundle",
        "a.png": "picture",
        "plain.png": "picture",
        "text.txt": "unknown",
        ".": "unknown",
    }
    report = {file: shell.answer("inspect", file) for file in kinds}
    assert {file: facts["kind"] for file, facts in report.items()} == kinds
    xl = report["xl.safetensors"]
    assert (xl["name"], xl["vectors"], xl["widths"], xl["dtype"]) == ("alice", 2, [768, 1280], "float32")
    assert xl["likely_for"] == "Stable Diffusion XL or 3" and len(xl["norms"]) == 2 and not xl["warnings"]
    assert report["identity.safetensors"]["table_hash"] == FACTS["table_hash"]
    assert report["celeb_basis.pt"]["components"] == 7 and report["id_coefficient_000.pt"]["coefficients"] == [2, 7]
    assert report["bundle"]["model"] == bundle.manifest.model.name and report["a.png"]["prompt"] == "alice smiling"
    assert "kind: embedding" in shell("inspect", "xl.safetensors")[1].splitlines()


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        (ROWS * np.nan, "NaN"),
        (ROWS * 0, "zero"),
        (ROWS * 1000, "tokens have about 0.6"),
        (ROWS[:1], "this one has 1"),
        (ROWS, ""),
    ],
)
def test_inspect_warns_about_unusual_arrays(shell: Shell, rows: Rows, warning: str) -> None:
    Path("x.safetensors").write_bytes(save({"emb_params": rows}))
    facts = shell.answer("inspect", "x.safetensors")
    assert [warning in sentence for sentence in facts["warnings"]] == [True] * bool(warning)
    assert ("note: " in shell("inspect", "x.safetensors")[2]) is bool(warning)


def test_inspect_recognises_noise(shell: Shell) -> None:
    path = torch_file(Path("x.pt"), torch.randn(2, 1, 512))
    assert "noise" in shell.answer("inspect", path)["warnings"][0]
    assert not shell.answer("inspect", torch_file(path, torch.randn(2, 1, 512) / 30))["warnings"]
