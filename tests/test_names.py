"""Laws of the celebrities' names: which tokenizer keeps which, where lists come from, which of them a model draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from celebctl.basis.basis import principal_components
from celebctl.basis.name_filtering import (
    FIRST_SEED,
    IMAGES_PER_NAME,
    NO_FACE,
    NO_SEPARATION,
    RenderedName,
    filter_names,
    render_batch_size,
    render_names,
)
from celebctl.basis.names import (
    OTHER_TOKENIZER,
    SAME_TOKENS,
    ChosenNames,
    name_report,
    names_file,
    read_name_list,
    read_names,
    shared_pairs,
    token_pairs,
)
from celebctl.basis.spectrum import REPORTED, Spectrum, spectrum_of
from celebctl.basis.spectrum_chart import draw_spectrum
from celebctl_models.checkpoints.known_models import KNOWN
from celebctl_models.checkpoints.registry import ModelCard, cached_folder, installed_folder, locate
from celebctl_models.checkpoints.token_tables import TokenTables
from celebctl_models.faces.analysis import Face
from celebctl_models.names import WELL_KNOWN
from celebctl_runtime.errors import IntegrityError, InvalidInputError, NotFoundError

KNOWN_WORDS = ("ann", "bob", "zoé", "lee", "king", "mary", "stone")
words = st.sampled_from([*KNOWN_WORDS, "Ann", "KING", "unheard", "o'neal", "x7", "zoe\u0301", "<|endoftext|>"])
lines = st.lists(st.lists(words, max_size=3).map(" ".join) | st.just("  "), max_size=25)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(KNOWN_WORDS)


@pytest.fixture(scope="module")
def mini_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return cast(Any, CLIPTokenizer).from_pretrained(str(locate("mini").path / "tokenizer"))


def whole(tokenizer: Any, word: str) -> bool:
    """Whether a word alone is one token without a meaning of its own."""
    ids = tokenizer([word], add_special_tokens=False).input_ids[0]
    return len(ids) == 1 and ids[0] not in tokenizer.all_special_ids


# The filter.


@settings(max_examples=60, deadline=None)
@given(names=lines)
def test_a_name_stays_if_and_only_if_it_is_two_words_of_one_token_each(tokenizer: Any, names: list[str]) -> None:
    found = token_pairs(tokenizer, names)
    given_names = {name.lower() for name in names if name.strip()}
    fit = {name for name in given_names if len(name.split()) == 2 and all(whole(tokenizer, w) for w in name.split())}
    doubles = {name for name, reason in found.dropped.items() if reason == SAME_TOKENS}
    assert set(found.names) | doubles == fit
    assert len(set(found.pairs)) == len(found.pairs), "no two names have the same tokens"
    assert {*found.names, *found.dropped} == given_names and not found.first_only


def test_names_that_only_look_different_count_once(tokenizer: Any) -> None:
    found = token_pairs(tokenizer, ["zoé lee", "zoe\u0301 lee", "Zoé  LEE"])
    assert len(found.names) == 1 and list(found.dropped.values()) == [SAME_TOKENS]


@settings(max_examples=60, deadline=None)
@given(names=lines, release=st.booleans())
def test_the_report_adds_up_to_the_list(tokenizer: Any, names: list[str], release: bool) -> None:
    report = name_report(names, token_pairs(tokenizer, names, release=release))
    assert report.read == sum(bool(name.strip()) for name in names)
    assert report.read == report.used + report.first_only + sum(report.counts().values())
    assert all(len(names) == report.counts()[reason] for reason, names in report.dropped.items())


def test_the_release_truncates_keeps_repeats_and_takes_single_tokens_for_first_names(tokenizer: Any) -> None:
    """METHOD of the published code: columns are the first and the second token of whatever there is."""
    names = ["Mary", "Bob King", "Bob Lee", "Bob Lee Stone", "Unheard King"]
    found = token_pairs(tokenizer, names, release=True)
    ids = {name: tokenizer([name.lower()], add_special_tokens=False).input_ids[0] for name in names}
    assert not found.dropped
    assert dict(zip(found.names, found.pairs, strict=True))["unheard king"] == tuple(ids["Unheard King"][:2])
    assert found.pairs.count((ids["Bob Lee"][0], ids["Bob Lee"][1])) == 2, "the same tokens stay as often as they come"
    assert found.first_only == (("mary", ids["Mary"][0]),)
    assert len(found.column(0)) == len(found.column(1)) + 1 == len(names)
    assert sorted(found.column(0)) == sorted(row[0] for row in ids.values())


def test_a_name_must_survive_every_tokenizer(tokenizer: Any) -> None:
    other = build_tokenizer([word for word in KNOWN_WORDS if word != "stone"])
    names = ["ann lee", "bob stone", "mary king", "cher"]
    first, second = shared_pairs([tokenizer, other], names)
    assert first.names == second.names == ("ann lee", "mary king")
    assert first.dropped["bob stone"] == OTHER_TOKENIZER and "tokens" in second.dropped["bob stone"]
    for pairs, one in ((first, tokenizer), (second, other)):
        assert pairs.pairs == token_pairs(one, pairs.names).pairs
        report = name_report(names, pairs)
        assert report.read == report.used + sum(report.counts().values())


def test_the_bundled_model_keeps_its_own_names_and_no_others(mini_tokenizer: Any) -> None:
    place = locate("mini")
    own = read_name_list(place.path / "names.txt")
    found = token_pairs(mini_tokenizer, [*own, "ada byron", own[0].split()[0]])
    assert set(found.names) == set(own)
    assert all(whole(mini_tokenizer, word) for name in found.names for word in name.split())


@pytest.fixture
def clip_tokenizer() -> Any:
    """CLIP's own, of any model of this machine that has it; the test is skipped where there is none."""
    from transformers import CLIPTokenizer

    for name in ("sd15", "sd14", "sdxl", "lcm"):
        for folder in (installed_folder(name), cached_folder(KNOWN[name].source, KNOWN[name].revision)):
            if folder is not None and any((folder / "tokenizer").glob("*.json")):
                return cast(Any, CLIPTokenizer).from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    pytest.skip("no model with CLIP's vocabulary is set up: celebctl setup sd15")


def test_clips_vocabulary_keeps_what_the_list_says_of_itself(clip_tokenizer: Any) -> None:
    found = token_pairs(clip_tokenizer, read_name_list(WELL_KNOWN))
    first, last = (len(set(found.column(position))) for position in (0, 1))
    says = " ".join((WELL_KNOWN.parent / "README.md").read_text(encoding="utf-8").split())
    assert f"keeps {len(found.names):,} of them, with {first:,} different first and {last:,} different last" in says


# Lists.


def test_our_list_is_long_sorted_and_without_repeats() -> None:
    lines = WELL_KNOWN.read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 1700
    folded = [line.casefold() for line in lines]
    assert folded == sorted(set(folded)), "sorted, and nobody twice"
    assert all(len(line.split()) >= 2 and line == " ".join(line.split()) for line in lines)
    assert read_name_list(WELL_KNOWN) == lines


def test_names_files_of_every_editor_are_read(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeff# who we know\r\n\r\nAnn  Lee \r\n  # more\r\nZoé King".encode())
    assert read_name_list(path) == ["Ann Lee", "Zoé King"]


def test_danbooru_tags_are_read_as_the_names_they_stand_for(tmp_path: Path) -> None:
    """With underscores, qualifiers in parentheses, the escapes that prompts need, and the scores of a probe."""
    lines = {
        "hatsune_miku": "hatsune miku",
        "artoria pendragon (fate)": "artoria pendragon",
        r"artoria_pendragon_\(lancer\)_\(fate\)": "artoria pendragon",
        "Ganyu  (genshin impact)": "Ganyu",
        "kaname madoka\t0.412": "kaname madoka",
        "(bad) luck": "(bad) luck",
    }
    path = tmp_path / "characters.txt"
    path.write_text("\n".join([*lines, "(fate)", "# a remark"]), encoding="utf-8")
    assert read_name_list(path) == list(lines.values())


@pytest.mark.parametrize(
    ("content", "problem", "error"),
    [
        (None, "there is no list", NotFoundError),
        (b"", "holds no name", InvalidInputError),
        (b"# nobody\n\n", "holds no name", InvalidInputError),
        ("Zoé King".encode("latin-1"), "cannot be read", InvalidInputError),
    ],
)
def test_an_unusable_names_file_is_refused(
    tmp_path: Path, content: bytes | None, problem: str, error: type[Exception]
) -> None:
    path = tmp_path / "names.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=problem):
        read_name_list(path)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_name_list(tmp_path)


@dataclass(frozen=True)
class Parts:
    """A loaded model as far as names go."""

    card: ModelCard
    name: str = "toy"


def parts_with(names: Path | None) -> TokenTables:
    return cast("TokenTables", Parts(ModelCard("toy", "sd", "toy", "none", 64, names_file=names)))


def test_a_chosen_list_wins_over_the_models_own_and_that_over_ours(tmp_path: Path) -> None:
    own, chosen = tmp_path / "own.txt", tmp_path / "chosen.txt"
    own.write_text("ann lee")
    chosen.write_text("bob king")
    assert read_names(parts_with(own), chosen) == ["bob king"]
    assert read_names(parts_with(own)) == ["ann lee"]
    assert names_file(parts_with(None)) == WELL_KNOWN
    with pytest.raises(IntegrityError, match="lacks its list"):
        names_file(parts_with(tmp_path / "gone.txt"))


def test_a_choice_is_stored_with_its_source_and_can_be_removed(tmp_path: Path, tokenizer: Any) -> None:
    choice = ChosenNames(tmp_path, "sd-12345678")
    assert choice.file is None
    names = ["Ann Lee", "Bob King", "cher"]
    report = name_report(names, token_pairs(tokenizer, names)).without({"bob king": NO_FACE})
    choice.save(["ann lee"], WELL_KNOWN, [report])
    assert choice.file is not None and read_name_list(choice.file) == ["ann lee"]
    assert choice.origin() == (WELL_KNOWN, [report])
    assert report.read == report.used + sum(report.counts().values()) == 3
    choice.path.with_suffix(".json").write_text("{")
    with pytest.raises(IntegrityError):
        choice.origin()
    choice.remove()
    assert choice.file is None and not list(choice.path.parent.iterdir())


# The spectrum.


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), tokens=st.integers(2, 30), width=st.integers(2, 20), release=st.booleans())
def test_the_cumulative_variance_never_falls_and_ends_at_one(seed: int, tokens: int, width: int, release: bool) -> None:
    random = np.random.default_rng(seed)
    table = random.standard_normal((50, width)).astype(np.float32)
    spectrum = spectrum_of(table, [0, 1, *random.integers(0, 50, tokens)], release=release)
    assert 1 <= spectrum.rank <= min(spectrum.tokens - 1, width)
    assert (np.diff(spectrum.cumulative) >= 0).all() and spectrum.cumulative[-1] == 1.0
    assert (np.diff(spectrum.singular_values) <= 0).all()
    shares = [spectrum.explained(count) for count in REPORTED]
    assert shares == sorted(shares) and spectrum.explained(spectrum.rank) == spectrum.explained(10**6) == 1.0
    assert spectrum.explained(spectrum.needed(0.9)) >= 0.9 > spectrum.explained(spectrum.needed(0.9) - 1)


def test_the_spectrum_is_the_one_of_the_basis() -> None:
    table = np.random.default_rng(1).standard_normal((60, 16)).astype(np.float32)
    ids = [3, 4, 4, 9, 20, 21, 22, 40]
    _, components, spread = principal_components(table[np.unique(ids)], 512, fill=False)
    spectrum = spectrum_of(table, ids)
    assert spectrum.rank == len(components) == spectrum.tokens - 1
    np.testing.assert_allclose(spectrum.singular_values / np.sqrt(spectrum.tokens - 1), spread, rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 2, 700])
def test_every_spectrum_can_be_drawn(rank: int) -> None:
    one = Spectrum(np.geomspace(3, 0.01, rank), rank + 1)
    other = Spectrum(np.geomspace(2, 0.05, 40), 41)
    alone, both = (draw_spectrum([(one, other)] * encoders, "basis", "names") for encoders in (1, 2))
    assert alone.width == both.width and both.height > alone.height
    assert len(alone.getcolors(2**20) or ()) > 50, "something is drawn"


# Names the model can draw.

STEADY, FACELESS, FICKLE, GENERIC = "steady", "faceless", "fickle", "generic"


class World:
    """A model and a recogniser in one: names that begin with "steady" have a face of their own, "fickle" ones get
    another each time, "generic" ones all the same, "faceless" ones none in most pictures.

    ``common`` is how alike all of its faces are.
    """

    def __init__(self, names: Sequence[str], common: float = 0.0, several: bool = False) -> None:
        self.names, self.common, self.several = list(names), common, several
        self.drawn: list[tuple[str, int]] = []
        self.stop_after: int | None = None

    def draw(self, names: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
        if self.stop_after is not None and len(self.drawn) >= self.stop_after:
            raise KeyboardInterrupt
        pictures = np.zeros((len(names), 8, 8, 3), np.uint8)
        for picture, name, seed in zip(pictures, names, seeds, strict=True):
            self.drawn.append((name, seed))
            picture[0, 0] = self.names.index(name), seed - FIRST_SEED, 0
        return pictures

    def analyse(self, photo: Image.Image) -> list[Face]:
        number, k, _ = (int(value) for value in np.asarray(photo)[0, 0])
        name = self.names[number]
        if name.startswith(FACELESS) and k > 0:
            return [self._face(0, 0), self._face(1, 0)] if self.several else []
        if name.startswith(GENERIC):
            return [self._face(1000, 0, noise=4 * number + k)]
        return [self._face(number, k if name.startswith(FICKLE) else 0, noise=k)]

    def _face(self, *who: int, noise: int = 0) -> Face:
        own = np.random.default_rng([7, *who]).standard_normal(512)
        shaken = own + 0.5 * np.random.default_rng([8, *who, noise]).standard_normal(512)
        feature = shaken / np.linalg.norm(shaken)
        feature = np.sqrt(1 - self.common) * feature + np.sqrt(self.common) * np.eye(512)[0]
        feature = (feature / np.linalg.norm(feature)).astype(np.float32)
        nothing = np.zeros(4, np.float32), 1.0, np.zeros((5, 2), np.float32), np.zeros((112, 112, 3), np.uint8)
        return Face(*nothing, feature)


CAST = [f"{kind} {number}" for kind in (STEADY, FACELESS, FICKLE) for number in range(12)]


@pytest.mark.parametrize("common", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("several", [False, True])
def test_a_name_stays_when_the_model_draws_one_and_the_same_face_for_it(
    tmp_path: Path, common: float, several: bool
) -> None:
    """However alike all faces of a model are to its recogniser: the measure is how alike strangers are."""
    world = World(CAST, common, several)
    verdict = filter_names(render_names(CAST, world.draw, world, tmp_path / "log.jsonl"))
    assert [name for name in verdict.kept if name.startswith(STEADY)] == CAST[:12]
    assert {name for name, why in verdict.dropped.items() if why == NO_FACE} == set(CAST[12:24])
    chance = [name for name in verdict.kept if name.startswith(FICKLE)]
    assert len(chance) <= 1, "hardly any without a face of their own"
    assert set(verdict.dropped) - set(CAST[12:24]) == set(CAST[24:]) - set(chance)
    assert set(verdict.dropped.values()) == {NO_FACE, NO_SEPARATION}


def test_names_that_all_get_the_same_face_are_dropped(tmp_path: Path) -> None:
    """Their pictures agree with each other, and with those of the other names: a model's face for unknown words."""
    cast = [f"{kind} {number}" for kind in (STEADY, GENERIC) for number in range(12)]
    world = World(cast)
    verdict = filter_names(render_names(cast, world.draw, world, tmp_path / "log.jsonl"))
    assert list(verdict.kept) == cast[:12]
    assert verdict.dropped == dict.fromkeys(cast[12:], NO_SEPARATION)
    assert all(verdict.separation[name] > verdict.min_separation for name in verdict.kept)
    assert max(verdict.separation[name] for name in cast[12:]) < 0.1


def test_a_person_under_two_names_keeps_both(tmp_path: Path) -> None:
    """The most similar names are several: a list may have the same person twice."""
    world = World(CAST[:12])
    rendered = render_names(CAST[:12], world.draw, world, tmp_path / "log.jsonl")
    double = RenderedName("second name", rendered[0].faces, rendered[0].features)
    verdict = filter_names([*rendered, double])
    assert {rendered[0].name, "second name"} <= set(verdict.kept)


def test_a_stopped_check_goes_on_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    run: Callable[[World, Path], list[RenderedName]] = partial(_run, CAST)
    straight = run(World(CAST), tmp_path / "straight.jsonl")
    world, log = World(CAST), tmp_path / "stopped.jsonl"
    world.stop_after = 20
    with pytest.raises(KeyboardInterrupt):
        run(world, log)
    with log.open("ab") as file:
        file.write(b'{"name": "fickle 11", "fac')  # what a crash may leave
    world.stop_after = None
    again = run(world, log)
    assert len(world.drawn) == len(set(world.drawn)) == IMAGES_PER_NAME * len(CAST), "nothing is drawn twice"
    assert log.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    for one, other in zip(straight, again, strict=True):
        assert (one.name, one.faces) == (other.name, other.faces)
        np.testing.assert_array_equal(one.features, other.features)
    read = run(World([]), log)  # which could not draw
    assert filter_names(read).kept == filter_names(straight).kept


def _run(names: Sequence[str], world: World, log: Path) -> list[RenderedName]:
    return render_names(names, world.draw, world, log, batch_size=7)


def test_too_few_faces_to_compare_are_an_error(tmp_path: Path) -> None:
    cast = CAST[:2]
    world = World(cast)
    with pytest.raises(InvalidInputError, match="only 2 of 2 names"):
        filter_names(render_names(cast, world.draw, world, tmp_path / "log.jsonl"))


def test_large_pictures_are_drawn_few_at_a_time() -> None:
    assert render_batch_size((64, 64)) == 64
    assert render_batch_size((512, 512)) == 8
    assert render_batch_size((1024, 1024)) == IMAGES_PER_NAME


#: Pairs of words that mini's captions have, and that are nobody's names.
INVENTED = (
    "smiling beach", "black suit", "dark mountain", "guitar forest", "people sunset", "outer snow", "bright woman",
    "together buildings", "old drawing", "small crown", "golden trees", "blurry friend", "snowy city", "tall chess",
    "large portrait", "cool game",
)  # fmt: skip


def test_a_probe_of_the_bundled_model_tells_its_names_from_invented_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, to a file that the basis is built from: precision and recall of its 691 known names."""
    from celebctl.cli import main

    known = [name.lower() for name in read_name_list(locate("mini").path / "names.txt")[::40]]
    mixed, kept = tmp_path / "mixed.txt", tmp_path / "kept.txt"
    mixed.write_text("\n".join([*known, *INVENTED]), encoding="utf-8")
    assert main(["basis", "probe", "--names", str(mixed), "-o", str(kept), "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    drawn = {*document["kept"], *document["dropped"]}
    assert drawn >= set(known) and len(drawn.intersection(INVENTED)) >= 10, "mini's tokenizer keeps most of them whole"
    right = set(document["kept"]) & set(known)
    assert len(right) / len(document["kept"]) >= 0.9 and len(right) / len(known) >= 0.9, document
    assert set(read_name_list(kept)) == set(document["kept"])
    assert all(document["separation"][name] > document["min_separation"] for name in document["kept"])
    assert main(["basis", "build", "--names", str(kept), "--json"]) == 0
    built = json.loads(capsys.readouterr().out)
    assert built["names"][0]["used"] == len(document["kept"])
    assert main(["basis", "probe", "--names", str(mixed), "-o", str(kept)]) == 2, "the file is not replaced"
