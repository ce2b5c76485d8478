"""Laws of the drawn world that mini is trained on."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from celebctl.evaluation.scorers import WorldScorer
from celebctl_models.checkpoints.diffusion import load_parts
from celebctl_models.faces.analysis import OnnxFaceAnalyser
from celebctl_models.mini.captions import OPENINGS, caption, vocabulary
from celebctl_models.mini.names import CELEBRITIES, name_book
from celebctl_models.mini.people import FACTORS, blend_names, sample_people, uniform_from_normal
from celebctl_models.mini.scenes import ACTS, EXPRESSIONS, PLACES, WORN, Rendered, render
from celebctl_models.mini.tokenizer import COMMON, build_tokenizer
from celebctl_models.mini.training.denoiser import CaptionedLatents
from celebctl_models.mini.training.faces import TEMPLATE, crop_112, similarity
from celebctl_models.mini.training.on_device_data import draw_faces, draw_pictures
from celebctl_models.mini.training.trainer import TrainingContext
from celebctl_models.mini.world import PromptFacts, build_scenes, draw_portrait, person


def render_people(z: Any, facts: list[PromptFacts], seeds: list[int], partner: Any = None, size: int = 64) -> Rendered:
    """Renders of people ``z`` (B, F), with ``partner`` (B, F) on the right if given."""
    first = torch.as_tensor(uniform_from_normal(z))
    second = first if partner is None else torch.as_tensor(uniform_from_normal(partner))
    scenes = build_scenes(torch.stack([first, second], 1), two=partner is not None, facts=facts, seeds=seeds)
    return render(scenes, size)


def test_there_are_691_celebrities_with_enough_distinct_words_for_512_components() -> None:
    book = name_book()
    assert len(book.names) == len(set(book.names)) == CELEBRITIES
    assert len(set(book.pairs[:, 0].tolist())) >= 513
    assert len(set(book.pairs[:, 1].tolist())) >= 513
    taken = {*vocabulary(), *COMMON}
    assert not taken & {*book.first_names, *book.last_names}
    assert len(FACTORS) >= 20


def test_the_book_is_the_same_every_time() -> None:
    one, other = name_book(), name_book()
    assert one.names == other.names
    np.testing.assert_array_equal(one.celebrities(), other.celebrities())


def test_blended_people_vary_as_much_as_unnamed_people() -> None:
    first, last, own = (sample_people(4000, seed) for seed in (1, 2, 3))
    for z in (blend_names(first, last), blend_names(first, last, own)):
        assert abs(float(z.std()) - 1.0) < 0.02
    u = uniform_from_normal(first)
    assert float(u.min()) >= 0.0 and float(u.max()) <= 1.0
    assert abs(float(u.mean()) - 0.5) < 0.01


def test_a_portrait_is_decided_by_its_seed() -> None:
    one, same, other = draw_portrait(3, 96), draw_portrait(3, 96), draw_portrait(4, 96)
    assert one.tobytes() == same.tobytes() != other.tobytes()
    assert one.size == (96, 96)


def test_the_first_named_stands_on_the_left() -> None:
    pale, dark = person(1).copy(), person(2).copy()
    pale[FACTORS.index("skin_tone")], dark[FACTORS.index("skin_tone")] = -4.0, 4.0
    drawn = render_people(pale[None], partner=dark[None], facts=[PromptFacts()], seeds=[5])
    left, right = drawn.landmarks[0, 0, 2], drawn.landmarks[0, 1, 2]  # noses, px
    assert left[0] < right[0]
    brightness = [float(drawn.image[0, :, int(y) - 2, int(x)].mean()) for x, y in (left, right)]
    assert brightness[0] > brightness[1] + 0.2


def test_every_stated_thing_changes_the_picture() -> None:
    z = person(7)[None]
    plain = render_people(z, facts=[PromptFacts()], seeds=[1]).image
    changes = [PromptFacts(place=p) for p in PLACES[1:]] + [PromptFacts(act=a) for a in ACTS[1:4]]
    changes += [PromptFacts(expression=e) for e in EXPRESSIONS[1:]] + [PromptFacts(worn=w) for w in WORN[1:]]
    for facts in changes:
        difference = (render_people(z, facts=[facts], seeds=[1]).image - plain).abs()
        assert int((difference.amax(1) > 0.1).sum()) >= 15, facts


def test_landmarks_lead_to_the_arcface_template() -> None:
    drawn = render_people(person(9)[None], facts=[PromptFacts()], seeds=[2], size=256)
    theta = similarity(drawn.landmarks[:, 0])  # template -> picture
    placed = TEMPLATE @ theta[0, :, :2].T + theta[0, :, 2]
    eye_distance = float(torch.dist(drawn.landmarks[0, 0, 1], drawn.landmarks[0, 0, 0]))
    misses = (placed - drawn.landmarks[0, 0]).square().sum(1).sqrt()
    assert float(misses.max()) < 0.35 * eye_distance
    assert crop_112(drawn.image * 2 - 1, drawn.landmarks[:, 0]).shape == (1, 3, 112, 112)


def test_captions_say_what_is_not_ordinary_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    assert all("{}" in opening for opening in OPENINGS)
    for _ in range(50):
        assert "beach" in (text := caption(["ada byron"], (1, 0, 0, 0, 0), rng)) or "sea" in text
        both = caption(["ada byron", "leo marsh"], (0, 1, 1, 0, 0), rng)
        assert both.index("ada byron") < both.index("leo marsh")
        assert "chess" in both
        assert "hat" not in both and "beach" not in both


def test_every_word_of_the_world_is_one_token(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    book = name_book()
    words = [*book.first_names[:80], *book.last_names[:80], *vocabulary()]
    build_tokenizer(words, tmp_path)
    build_tokenizer(words, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    tokenizer = cast(Any, CLIPTokenizer).from_pretrained(tmp_path)
    assert all(len(tokenizer(word)["input_ids"]) == 3 for word in words)
    assert tokenizer("never-heard")["input_ids"], "other words fall back to smaller pieces"


def test_rendering_does_not_depend_on_the_batch() -> None:
    z = np.stack([person(i) for i in range(4)])
    facts = [PromptFacts(act="chess"), PromptFacts(), PromptFacts(worn="crown"), PromptFacts(place="city")]
    seeds = [1, 2, 3, 4]
    together = render_people(z, facts=facts, seeds=seeds).image
    alone = torch.cat(
        [render_people(z[i : i + 1], facts=facts[i : i + 1], seeds=seeds[i : i + 1]).image for i in range(4)]
    )
    torch.testing.assert_close(together, alone)


def test_scenes_drawn_where_they_are_learned_from_are_those_of_the_world(tmp_path: Path) -> None:
    """Latents and facts belong together: what is said of a scene is seen in its decoded latent."""
    parts, run = load_parts("mini"), TrainingContext(tmp_path, torch.device("cpu"))
    vae, tokenizer = parts.vae, parts.tokenizers[0]
    pictures, latents = draw_pictures(run, parts.vae, 24)
    assert latents.shape == (24, 4, 16, 16) and latents.dtype == torch.float16 and len(pictures) == 24
    two = pictures.facts[:, 0].astype(bool)
    assert (pictures.boxes[~two, 1] == -1).all() and (pictures.boxes[two, 1, 2:] > pictures.boxes[two, 1, :2]).all()
    with torch.no_grad():
        pixels: torch.Tensor = vae.decode(latents.float()).sample.clamp(-1, 1)
    seen = list((pixels.permute(0, 2, 3, 1) * 127.5 + 127.5).round().to(torch.uint8).numpy())
    assert parts.card.scoring_dir is not None and parts.card.faces_dir is not None
    scorer = WorldScorer(parts.card.scoring_dir, OnnxFaceAnalyser(parts.card.faces_dir))
    places = [PLACES[int(place)] for place in pictures.facts[:, 1]]
    right = sum(one.attributes["place"] == place for one, place in zip(scorer.score(seen), places, strict=True))
    assert right >= 22
    again, same = draw_pictures(run, parts.vae, 24)
    assert (again.facts == pictures.facts).all() and torch.equal(same, latents)

    index, ids, report, emphasis = next(iter(CaptionedLatents(pictures, tokenizer, 8, seed=1)))
    assert len({int(i) for i in index}) == 8 and ids.shape == (8, 77)
    empty = tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids[0]
    assert torch.equal((ids != empty).any(1), report)
    assert torch.allclose(emphasis.mean((1, 2, 3)), torch.ones(8)) and float(emphasis.max()) > 1.2


def test_people_drawn_for_the_reader_have_their_looks(tmp_path: Path) -> None:
    faces, latents = draw_faces(TrainingContext(tmp_path, torch.device("cpu")), load_parts("mini").vae, 40, 73, 500)
    assert latents.shape == (40, 4, 16, 16) and faces.who.shape == (40, 2) and faces.who.max() < len(faces.z) == 500
    assert np.array_equal(faces.z, sample_people(500, 73)) and np.array_equal(faces.two, faces.facts[:, 0] == 1)
