"""Laws of the illustrated world: pictures, words, combinations kept from training, features."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from celebctl_models.mini.illustration import gallery
from celebctl_models.mini.illustration.captions import (
    VOCABULARIES,
    Facts,
    all_words,
    caption,
    facts_of,
    held_out_facts,
    vocabulary,
)
from celebctl_models.mini.illustration.cars import CAR_FACTORS, CAR_FEATURES, car_book
from celebctl_models.mini.illustration.features import (
    car_features_in_words,
    features_in_words,
    features_of,
    visible_features,
)
from celebctl_models.mini.illustration.figure import EXPRESSIONS, WORN
from celebctl_models.mini.illustration.people import FACTORS, FEATURES
from celebctl_models.mini.illustration.places import PLACES
from celebctl_models.mini.illustration.scenes import (
    ACTS,
    DISTANCES,
    ITEMS,
    VIEWS,
    Scenes,
    draw,
    is_held_out,
    random_scenes,
    render,
)
from celebctl_models.mini.illustration.styles import STYLES
from celebctl_models.mini.names import name_book
from celebctl_models.mini.people import uniform_from_normal
from celebctl_models.mini.tokenizer import COMMON, build_tokenizer


def plain_scenes(count: int, people: int = 1, **values: int) -> Scenes:
    """The same person ``count`` times in plain portraits, half length, but for the values given."""
    generator = torch.Generator().manual_seed(3)
    factors = torch.full((count, 3, len(FACTORS)), 0.45)
    factors[:, :, FACTORS.index("hair_style")] = 0.12
    scenes = random_scenes(factors, torch.full((count,), people), generator)
    zero = torch.zeros(count, dtype=torch.long)
    columns = dict.fromkeys(VOCABULARIES, zero) | {"distance": zero + 1}
    columns |= {name: zero + value for name, value in values.items()}
    return replace(scenes, nuisance=scenes.nuisance[:1].expand(count, -1), **columns)


def changed(one: torch.Tensor, other: torch.Tensor) -> int:
    """Pixels that differ clearly."""
    return int(((one - other).abs().amax(0) > 0.1).sum())


def test_the_world_has_the_words_it_promises() -> None:
    assert len(PLACES) > 10 and len(ACTS) > 12 and len(WORN) > 10 and len(EXPRESSIONS) > 6 and len(STYLES) == 7
    assert len(DISTANCES) == len(VIEWS) == 3 and len(FEATURES) >= 14
    assert all(len(options) >= 2 and sum(s for _, s in options) == pytest.approx(1.0) for options in FEATURES.values())
    assert all(sum(s for _, s in options) == pytest.approx(1.0) for options in CAR_FEATURES.values())


def test_a_picture_depends_on_its_scene_alone() -> None:
    scenes = gallery.random_gallery(12, 4)
    together = draw(scenes, 64).image
    alone = torch.cat([render(scenes[torch.tensor([i])], 64).image for i in range(12)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert torch.equal(together, draw(gallery.random_gallery(12, 4), 64).image)
    assert not torch.equal(together, draw(gallery.random_gallery(12, 5), 64).image)
    assert float(together.min()) >= 0.0 and float(together.max()) <= 1.0


@pytest.mark.parametrize("name", ["place", "act", "expression", "worn", "item", "style", "view", "distance"])
def test_every_word_changes_the_picture(name: str) -> None:
    words = VOCABULARIES[name]
    scenes = replace(plain_scenes(len(words), people=2), **{name: torch.arange(len(words))})
    images = draw(scenes, 64).image
    plain = images[1 if name == "distance" else 0]
    same = [word for word, image in zip(words, images, strict=True) if changed(image, plain) < 20]
    assert same == [words[1 if name == "distance" else 0]]
    assert all(changed(a, b) >= 20 for i, a in enumerate(images) for b in images[:i])


def test_colours_are_those_of_the_things() -> None:
    red, blue = 0, 1
    for name, value in (("worn", WORN.index("sweater")), ("item", ITEMS.index("balloon"))):
        scenes = plain_scenes(2, **{name: value})
        images = draw(replace(scenes, **{f"{name}_colour": torch.tensor([red, blue])}), 64).image
        differs = (images[0] - images[1]).abs().amax(0) > 0.2
        assert int(differs.sum()) > 30
        means = images[:, :, differs].mean(2)
        assert means[0, 0] > means[0, 2] + 0.2 and means[1, 2] > means[1, 0] + 0.2


def test_faces_are_where_the_boxes_say() -> None:
    scenes = plain_scenes(1, people=3)
    pale, dark = scenes.factors.clone(), scenes.factors.clone()
    dark[:, 1, FACTORS.index("skin_tone")] = 0.99
    one, other = (render(replace(scenes, factors=factors), 128) for factors in (pale, dark))
    x1, y1, x2, y2 = (int(value) for value in one.boxes[0, 1])
    where = ((one.image[0] - other.image[0]).abs().amax(0) > 0.2).nonzero().float()
    assert one.present.all() and y1 < where[:, 0].median() < y2 and x1 < where[:, 1].median() < x2
    noses = one.landmarks[0, :, 2, 0]
    assert noses[0] < noses[1] < noses[2]


@pytest.mark.parametrize("feature", FEATURES)
def test_every_class_of_a_feature_is_seen_near_the_face(feature: str) -> None:
    options = FEATURES[feature]
    edges = np.cumsum([0.0, *(share for _, share in options)])
    scenes = plain_scenes(len(options))
    factors = scenes.factors.clone()
    if feature == "glasses_colour":
        factors[:, :, FACTORS.index("glasses")] = 0.6
    factors[:, 0, FACTORS.index(feature)] = torch.as_tensor((edges[:-1] + edges[1:]) / 2).float()
    assert [one[feature] for one in features_in_words(factors[:, 0])] == [name for name, _ in options]
    drawn = draw(replace(scenes, factors=factors), 128)
    corners: list[float] = cast(Any, drawn.boxes[0, 0]).tolist()
    x1, y1, x2, y2 = corners
    wide, tall = x2 - x1, y2 - y1
    left, right, top, low = (
        max(0, int(v)) for v in (x1 - 0.45 * wide, x2 + 0.45 * wide, y1 - 0.5 * tall, y2 + 0.6 * tall)
    )
    for i in range(len(options)):
        for j in range(i):
            differs = (drawn.image[i] - drawn.image[j]).abs().amax(0) > 0.06
            assert int(differs[top:low, left:right].sum()) >= 12, (options[i], options[j])
    assert bool(visible_features(scenes)[feature][:, 0].all()) == (feature != "glasses_colour")


def test_what_hides_a_feature_is_known() -> None:
    def seen(feature: str, **values: int) -> bool:
        scenes = plain_scenes(1, **values)
        scenes.factors[:, :, FACTORS.index("glasses")] = 0.6
        return bool(visible_features(scenes)[feature][0, 0])

    assert seen("hair_style") and not seen("hair_style", worn=WORN.index("hat"))
    assert seen("glasses") and not seen("glasses", worn=WORN.index("sunglasses"))
    assert seen("eye_colour") and not seen("eye_colour", expression=EXPRESSIONS.index("laughing"))
    assert not seen("eye_colour", style=STYLES.index("pencil")) and seen("glasses", style=STYLES.index("pencil"))
    assert seen("lips", act=ACTS.index("waving")) and not seen("lips", act=ACTS.index("eating"))
    assert not seen("nose", distance=DISTANCES.index("full length"))
    assert not visible_features(plain_scenes(1))["nose"][0, 1], "there is no second person"


def test_a_hidden_feature_leaves_no_trace() -> None:
    scenes = plain_scenes(2, worn=WORN.index("sunglasses"))
    factors = scenes.factors.clone()
    factors[0, :, FACTORS.index("eye_colour")], factors[1, :, FACTORS.index("eye_colour")] = 0.05, 0.75
    images = draw(replace(scenes, factors=factors), 128).image
    assert changed(images[0], images[1]) == 0


def test_a_fifth_of_the_combinations_is_kept_from_training() -> None:
    grid = torch.meshgrid(*(torch.arange(len(words)) for words in (PLACES, ACTS, WORN, STYLES)), indexing="ij")
    held = is_held_out(*grid)
    assert float(held.float().mean()) == pytest.approx(0.2, abs=0.01)
    for kept in (~held).any(dim=(2, 3)), (~held).any(dim=(0, 1)), (~held).any(dim=(0, 3)), (~held).any(dim=(1, 2)):
        assert bool(kept.all())
    generator = torch.Generator().manual_seed(0)
    people = torch.rand(1, 3, len(FACTORS)).expand(4000, -1, -1)
    scenes = random_scenes(people, torch.ones(4000, dtype=torch.long), generator)
    assert not is_held_out(scenes.place, scenes.act, scenes.worn, scenes.style).any()
    rng = np.random.default_rng(0)
    for several in (3, 4):
        for facts in held_out_facts(40, rng, several):
            index = {name: VOCABULARIES[name].index(getattr(facts, name)) for name in ("place", "act", "worn", "style")}
            assert bool(is_held_out(**index)) and sum(value > 0 for value in index.values()) == several


def test_captions_say_everything_that_is_shown() -> None:
    rng = np.random.default_rng(0)
    facts = Facts("beach", "tea", "crying", "hat", "orange", "nothing", "green", "pencil", "half", "left")
    texts = [caption(["ada byron", "leo marsh"], facts, rng) for _ in range(30)]
    for text in texts:
        assert text.index("ada byron") < text.index("leo marsh")
        assert "an orange hat" in text or "orange hat" in text
        assert "green" in text and "left" in text and ("beach" in text or "sea" in text)
        assert "pencil" in text or "sketch" in text
        assert "a orange" not in text and "{" not in text
    assert len(set(texts)) > 20
    beside = caption(["ada byron"], Facts(place="beach"), rng, car="vorado glidello")
    assert beside.index("ada byron") < beside.index("vorado glidello")
    alone = " ".join(caption([], Facts(view="left"), rng, car="vorado glidello") for _ in range(30))
    assert alone.count("vorado glidello") == 30 and "left" not in alone and "length" not in alone


def test_captions_keep_to_the_vocabulary() -> None:
    rng = np.random.default_rng(1)
    known = {*vocabulary(), "anna", "leo", "tom"}
    scenes = gallery.random_gallery(300, 2)
    counts: list[int] = cast(Any, scenes.count).tolist()
    for facts, count in zip(facts_of(scenes), counts, strict=True):
        text = caption(["anna", "leo", "tom"][: max(count, 1)], facts, rng)
        assert not {*text.replace(",", " ").replace("-", " ").split()} - known, text


def test_every_word_is_one_token(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    book, cars = name_book(factors=len(FACTORS)), car_book()
    words = all_words(book, cars)
    names = [*book.first_names, *book.last_names, *cars.first_names, *cars.last_names]
    assert len({*names}) == len(names) and not {*names} & {*vocabulary(), *COMMON}
    few = [*vocabulary(), *names[::40]]
    build_tokenizer(few, tmp_path)
    tokenizer = cast(Any, CLIPTokenizer).from_pretrained(tmp_path)
    assert {*few} <= {*words} and all(len(tokenizer(word)["input_ids"]) == 3 for word in few)


def test_cars_are_many_and_none_is_real() -> None:
    book = car_book()
    assert len(book.names) == len(set(book.names)) >= 300 and book.names == car_book().names
    real = (
        "abarth acura alfa alpine aston audi bentley bmw bugatti buick cadillac chevrolet chrysler citroen dacia "
        "daewoo daihatsu dodge ferrari fiat ford genesis honda hummer hyundai infiniti isuzu iveco jaguar jeep kia "
        "lamborghini lancia land rover lexus lincoln lotus maserati maybach mazda mclaren mercedes mitsubishi nissan "
        "opel pagani peugeot polestar pontiac porsche proton renault rolls saab seat skoda smart subaru suzuki "
        "tata tesla toyota vauxhall volkswagen volvo astra corsa golf polo panda punto clio twingo corolla yaris civic "
        "corvette mustang fiesta focus passat tiguan beetle cooper swift jimny ibiza leon octavia fabia duster kangoo"
    ).split()
    assert not {*book.first_names, *book.last_names} & {*real}
    used = Counter(name for pair in book.pairs.tolist() for name in (f"make {pair[0]}", f"model {pair[1]}"))
    assert max(used.values()) <= 2


def test_cars_look_as_their_factors_say() -> None:
    scenes = plain_scenes(6, people=1)
    scenes = replace(scenes, car=torch.ones(6, dtype=torch.bool), count=torch.zeros(6, dtype=torch.long))
    factors = torch.full((6, len(CAR_FACTORS)), 0.2)
    factors[:, CAR_FACTORS.index("body")] = torch.tensor([0.1, 0.3, 0.45, 0.6, 0.75, 0.95])
    assert len({one["body"] for one in car_features_in_words(factors)}) == 6
    images = draw(replace(scenes, car_factors=factors), 64).image
    assert all(changed(images[i], images[j]) > 60 for i in range(6) for j in range(i))
    people = uniform_from_normal(car_book().celebrities())
    shares = features_of(torch.rand(2000, len(FACTORS)))["hair_style"].bincount(minlength=12) / 2000
    assert people.shape[1] == len(CAR_FACTORS) and float((shares - 1 / 12).abs().max()) < 0.05


def test_the_gallery_writes_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gallery", "--out", str(tmp_path / "sheet.png"), "--size", "32"])
    gallery.main()
    from PIL import Image

    assert Image.open(tmp_path / "sheet.png").size == (gallery.COLUMNS * 32, gallery.ROWS * 32)
