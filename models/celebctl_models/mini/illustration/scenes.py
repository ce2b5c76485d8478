"""Scenes of the illustrated world: who is there, where, doing what, and the pixels.

A ``Scenes`` batch is data only; ``random_scenes`` draws one from a generator, ``render`` paints it. The same scene at
the same size gives the same picture, whatever else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .acts import ACTS as ACT_TABLE
from .acts import ITEMS as ITEM_TABLE
from .acts import centred, draw_act, draw_handshake, draw_table
from .cars import CAR_FACTORS, car_look, draw_cars
from .clothes import OUTFITS, draw_body
from .face import draw_earrings, draw_head
from .figure import EXPRESSIONS, WORN, Figure, Pose
from .glasses import draw_glasses
from .hair import draw_back_hair, draw_front_hair
from .hats import draw_hats
from .people import look_of
from .places import BACKDROPS, PLACES
from .shapes import Canvas, Rows, palette, pick
from .styles import STYLES, apply_styles

ACTS: tuple[str, ...] = tuple(ACT_TABLE)
ITEMS: tuple[str, ...] = tuple(ITEM_TABLE)
DISTANCES: tuple[str, ...] = ("close-up", "half", "full length")
VIEWS: tuple[str, ...] = ("ahead", "left", "right")
COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "white", "black")
TINTS = palette(
    [(0.87, 0.18, 0.18), (0.20, 0.42, 0.82), (0.24, 0.62, 0.34), (0.98, 0.80, 0.22), (0.96, 0.54, 0.16),
     (0.55, 0.32, 0.70), (0.96, 0.56, 0.70), (0.95, 0.95, 0.94), (0.17, 0.17, 0.20)]
)  # fmt: skip
SHIRTS = palette(
    [(0.85, 0.38, 0.34), (0.29, 0.50, 0.70), (0.42, 0.64, 0.48), (0.94, 0.74, 0.36), (0.58, 0.44, 0.66),
     (0.92, 0.58, 0.40), (0.36, 0.64, 0.66), (0.90, 0.88, 0.82), (0.42, 0.44, 0.52), (0.88, 0.56, 0.62),
     (0.62, 0.72, 0.84), (0.56, 0.36, 0.30)]
)  # fmt: skip
TROUSERS = palette([(0.28, 0.36, 0.54), (0.30, 0.30, 0.36), (0.62, 0.50, 0.38), (0.42, 0.46, 0.40), (0.50, 0.34, 0.32)])
#: Uniforms that decide pose, light, clothes and scenery.
NUISANCES = 64
PEOPLE = 3
#: Canvas units per face unit by number of people (1 to 3) and distance, and height of the head's middle.
_SIZE = torch.tensor([[0.60, 0.395, 0.258], [0.435, 0.345, 0.250], [0.325, 0.272, 0.222]])
_HEIGHT = torch.tensor([[0.02, -0.24, -0.47], [0.0, -0.16, -0.43], [0.0, -0.10, -0.27]])
_ZOOM = torch.tensor([1.45, 1.18, 1.0])
#: Scenes drawn together: what stays in a processor's cache, what keeps a GPU busy.
AT_ONCE, AT_ONCE_GPU = 32, 512


@dataclass(frozen=True)
class Scenes(Rows):
    """B scenes.

    factors: (B, 3, F) identity uniforms, rows beyond ``count`` unused. count: (B,) 0 to 3 people. place, act,
    expression, worn, worn_colour, item, item_colour, style, distance, view: (B,) int64 indices into the vocabularies.
    car: (B,) bool whether a car stands there; car_factors: (B, C) uniforms, unused without. nuisance: (B, 64) uniforms
    that decide pose, light, clothes and scenery. With a car there are at most two people, without one at least one.
    """

    factors: Tensor
    count: Tensor
    place: Tensor
    act: Tensor
    expression: Tensor
    worn: Tensor
    worn_colour: Tensor
    item: Tensor
    item_colour: Tensor
    style: Tensor
    distance: Tensor
    view: Tensor
    car: Tensor
    car_factors: Tensor
    nuisance: Tensor

    def __len__(self) -> int:
        return self.count.shape[0]


def pose_of(scenes: Scenes, who: int) -> Pose:
    """Pose, light and clothes of person ``who``; people stand from left to right in the order they are named."""
    n = scenes.nuisance[:, 12 + 12 * who : 24 + 12 * who]
    c = (n - 0.5).unsqueeze(-1)
    device = n.device
    count = torch.where(scenes.car, scenes.count.clamp_max(2), scenes.count - 1)  # a car takes the room of a person
    size = _SIZE.to(device)[count, scenes.distance].view(-1, 1, 1)
    y = _HEIGHT.to(device)[count, scenes.distance].view(-1, 1, 1)
    spread = torch.tensor([[0.0, 0.0, 0.0], [-0.48, 0.48, 0.0], [-0.64, 0.0, 0.64]], device=device)
    beside = torch.tensor([[0.0, 0.0, 0.0], [-0.56, 0.0, 0.0], [-0.70, -0.24, 0.0]], device=device)
    x = torch.where(scenes.car, beside[scenes.count.clamp_max(2), who], spread[count, who]).view(-1, 1, 1)
    alone = ((scenes.count == 1) & ~scenes.car).float().view(-1, 1, 1)
    turn = torch.tensor([0.0, -0.95, 0.95], device=device)[scenes.view].view(-1, 1, 1)
    light = torch.where(scenes.nuisance[:, 10] > 0.4, -1.0, 1.0).view(-1, 1, 1)
    full = (scenes.distance == 2).float().view(-1, 1, 1)
    return Pose(
        x=x + (0.04 + 0.14 * alone) * c[:, 0:1],
        y=y + (0.06 - 0.04 * full) * c[:, 1:2],
        size=size * (1.0 + 0.08 * c[:, 2:3] * (1.0 - full)),
        roll=0.16 * c[:, 3:4],
        yaw=turn + torch.where(turn == 0.0, 0.6, 0.2) * c[:, 4:5],
        gaze=(0.8 * turn + 0.7 * c[:, 5:6]).clamp(-1.0, 1.0),
        light=light,
        shirt=pick(SHIRTS, (n[:, 6] * len(SHIRTS)).long()),
        trousers=pick(TROUSERS, (n[:, 7] * len(TROUSERS)).long()),
        tint=pick(TINTS, scenes.worn_colour),
        item=pick(TINTS, scenes.item_colour),
        outfit=(n[:, 8] * len(OUTFITS)).long(),
        expression=scenes.expression,
        worn=scenes.worn,
    )  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """Painted scenes and where the faces are.

    image: (B, 3, S, S) float32 in [0, 1]; boxes: (B, 3, 4) x1, y1, x2, y2 in pixels; landmarks: (B, 3, 5, 2) left eye,
    right eye, nose, mouth corners in pixels; present: (B, 3) bool.
    """

    image: Tensor
    boxes: Tensor
    landmarks: Tensor
    present: Tensor


def render(scenes: Scenes, size: int = 128) -> Rendered:
    """Paint a batch at ``size`` x ``size`` pixels."""
    canvas = Canvas(len(scenes), size, scenes.nuisance.device)
    _backdrop(canvas, scenes)
    _cars(canvas, scenes)
    figures = _figures(canvas, scenes)
    for figure in reversed(figures):
        draw_person(figure)
    _draw_acts(figures, scenes)
    image = apply_styles(canvas.image, scenes.style, scenes.nuisance[:, 48:51])
    return Rendered(image, *_annotations(figures, scenes, size))


def _figures(canvas: Canvas, scenes: Scenes) -> list[Figure]:
    figures: list[Figure] = []
    for who in range(int(scenes.count.max())):
        rows = (scenes.count > who).nonzero()[:, 0]
        figures.append(Figure(canvas, rows, look_of(scenes.factors[rows, who]), pose_of(scenes[rows], who)))
    return figures


def _backdrop(canvas: Canvas, scenes: Scenes) -> None:
    for kind, name in enumerate(PLACES):
        rows = (scenes.place == kind).nonzero()[:, 0]
        if len(rows):
            n = scenes.nuisance[rows, :10].view(-1, 10, 1, 1)
            zoom = _ZOOM.to(rows.device)[scenes.distance[rows]].view(-1, 1, 1)
            window = canvas.whole(rows).frame(0.0, 0.12 * (zoom - 1.0), zoom)
            BACKDROPS[name](window, n)
            window.close()


def _cars(canvas: Canvas, scenes: Scenes) -> None:
    rows = scenes.car.nonzero()[:, 0]
    if not len(rows):
        return
    x, y, unit = car_places(scenes[rows])
    facing = torch.where(scenes.nuisance[rows, 53] > 0.5, 1.0, -1.0)
    draw_cars(canvas, rows, car_look(scenes.car_factors[rows], *(one.view(-1, 1, 1) for one in (x, y, unit, facing))))


def car_places(scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Where the cars of scenes with one stand, (B,) each in canvas units: x and y of their middle on the ground, unit.

    The unit is half the length of a car.
    """
    n = scenes.nuisance[:, 51:53]
    alone = scenes.count == 0
    full = scenes.distance == 2
    unit = torch.where(alone, torch.where(full, 0.58, 0.80), torch.where(full, 0.56, 0.66))
    x = torch.where(alone, 0.0, 0.86 - 0.8 * unit) + 0.10 * (n[:, 0] - 0.5)
    y = torch.where(full, 0.84, 0.80) + 0.06 * (n[:, 1] - 0.5)
    return x, y, unit


def car_boxes(scenes: Scenes, size: int = 128) -> Tensor:
    """Boxes (B, 4) of cars, x1, y1, x2, y2 in pixels, as far as they are in the picture; zeros where no car is."""
    x, y, unit = car_places(scenes)
    boxes = torch.stack([x - 1.06 * unit, y - 1.18 * unit, x + 1.06 * unit, y], 1)
    return (boxes.clamp(-1.0, 1.0) + 1.0) * (size / 2) * scenes.car[:, None]


def draw_person(figure: Figure) -> None:
    """Everything of these people but arms and hands."""
    draw_back_hair(figure)
    draw_body(figure)
    draw_head(figure)
    draw_front_hair(figure)
    draw_glasses(figure)
    draw_earrings(figure)
    draw_hats(figure)


def _draw_acts(figures: list[Figure], scenes: Scenes) -> None:
    shake = ACTS.index("handshake")
    if not figures:
        return
    for table, column in ((ACT_TABLE, scenes.act), (ITEM_TABLE, torch.where(scenes.act == 0, scenes.item, -1))):
        for kind, act in enumerate(table.values()):
            rows = (column == kind).nonzero()[:, 0]
            if not len(rows) or (table is ACT_TABLE and kind in (0, shake)):
                continue
            draw_table(centred(figures, rows), act)
            for figure in figures:
                part = figure.only(torch.isin(figure.rows, rows))
                if len(part):
                    draw_act(part, act)
    rows = (scenes.act == shake).nonzero()[:, 0]
    if len(rows):
        left, right = (figure.only(torch.isin(figure.rows, rows)) for figure in figures[:2])
        draw_handshake(left, right)


def _annotations(figures: list[Figure], scenes: Scenes, size: int) -> tuple[Tensor, Tensor, Tensor]:
    batch = len(scenes)
    boxes = torch.zeros(batch, PEOPLE, 4, device=scenes.nuisance.device)
    points = torch.zeros(batch, PEOPLE, 5, 2, device=scenes.nuisance.device)
    for who, figure in enumerate(figures):
        boxes[figure.rows, who] = figure.face_box()
        points[figure.rows, who] = figure.landmarks()
    present = torch.arange(PEOPLE, device=boxes.device)[None] < scenes.count[:, None]
    return (boxes + 1.0) * (size / 2), (points + 1.0) * (size / 2), present


def choose(generator: torch.Generator, shares: list[float], count: int) -> Tensor:
    """``count`` class indices with the given shares."""
    return torch.multinomial(torch.tensor(shares), count, replacement=True, generator=generator)


def _mostly(first: float, others: int) -> list[float]:
    return [first, *[(1.0 - first) / others] * others]


def random_scenes(factors: Tensor, count: Tensor, generator: torch.Generator, cars: Tensor | None = None) -> Scenes:
    """Scenes around given people and cars.

    Args:
        factors: (B, 3, F) uniforms of the people.
        count: (B,) how many of them are there; 0 only where there is a car.
        generator: Decides everything else; place, act, worn and style are never a held-out combination.
        cars: (B, C) uniforms of a car, NaN in rows without one; None for no cars at all.
    """
    total = count.shape[0]
    if cars is None:
        cars = torch.full((total, len(CAR_FACTORS)), torch.nan)
    car = ~cars[:, 0].isnan()
    people = (count > 0).long()
    act = choose(generator, _mostly(0.36, len(ACTS) - 1), total)
    act = torch.where((act == ACTS.index("handshake")) & (count != 2), 0, act)
    act = torch.where(car, 0, act)
    item = choose(generator, _mostly(0.5, len(ITEMS) - 1), total)
    item = torch.where(act == 0, item, 0)
    distance = choose(generator, [0.3, 0.45, 0.25], total)
    item = item * people
    busy = (act > 0) | (item > 0) | car
    distance = torch.where(busy & (distance == 0), 1, distance)
    place = choose(generator, _mostly(0.20, len(PLACES) - 1), total)
    worn = choose(generator, _mostly(0.34, len(WORN) - 1), total) * people
    style = choose(generator, _mostly(0.5, len(STYLES) - 1), total)
    style = torch.where(is_held_out(place, act, worn, style), 0, style)
    worn = torch.where(is_held_out(place, act, worn, style), 0, worn)
    return Scenes(
        factors=factors,
        count=count,
        place=place,
        car=car,
        car_factors=torch.nan_to_num(cars),
        act=act,
        expression=choose(generator, _mostly(0.34, len(EXPRESSIONS) - 1), total) * people,
        worn=worn,
        worn_colour=choose(generator, [1.0] * len(COLOURS), total),
        item=item,
        item_colour=choose(generator, [1.0] * len(COLOURS), total),
        style=style,
        distance=distance,
        view=choose(generator, [0.6, 0.2, 0.2], total),
        nuisance=torch.rand(total, NUISANCES, generator=generator),
    )


def is_held_out(place: Tensor | int, act: Tensor | int, worn: Tensor | int, style: Tensor | int) -> Tensor:
    """Whether a combination is kept from training: a fifth of those in which at least three things are stated.

    Arguments are indices into PLACES, ACTS, WORN and STYLES; index 0 states nothing. Every pair of words still occurs.
    """
    parts = [torch.as_tensor(one) for one in (place, act, worn, style)]
    stated = torch.stack([(one > 0).long() for one in parts]).sum(0)
    total = parts[0] + 2 * parts[1] + 3 * parts[2] + 4 * parts[3]
    return (stated >= 3) & (total % 5 == 0)


def draw(scenes: Scenes, size: int = 128) -> Rendered:
    """``render`` for many scenes: a few at a time, those with people of one size together, which is faster."""
    order = torch.argsort(scenes.distance * (PEOPLE + 1) + scenes.count, stable=True)
    at_once = AT_ONCE if scenes.nuisance.device.type == "cpu" else AT_ONCE_GPU
    parts = [render(scenes[rows], size) for rows in torch.split(order, at_once)]
    back = torch.argsort(order)
    return Rendered(
        **{field.name: torch.cat([getattr(part, field.name) for part in parts])[back] for field in fields(Rendered)}
    )
