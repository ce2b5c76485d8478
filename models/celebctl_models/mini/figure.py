"""Draws one person per canvas: from identity factors and the pose (position, expression, light, what is worn) to paint.

Face coordinates: origin between nose and eyes, u to the right, v down, one unit = half the height of an average face.
Yaw shows as parallax: features slide over the head. Landmarks come out in the same pass, so the detector that is
trained on these pictures and the pictures themselves cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .drawing import Canvas, both, box, classes, col, either, ellipse, pick, ramp, segment, span, without
from .people import FACTORS

EXPRESSIONS: tuple[str, ...] = ("neutral", "smiling", "surprised", "crying")
WORN: tuple[str, ...] = ("nothing", "red hat", "suit", "sunglasses", "crown")

SKIN = torch.tensor(
    [
        [0.99, 0.88, 0.79],
        [0.95, 0.77, 0.62],
        [0.83, 0.61, 0.44],
        [0.66, 0.44, 0.29],
        [0.46, 0.29, 0.19],
        [0.31, 0.19, 0.13],
    ]
)
HAIR = torch.tensor(
    [
        [0.09, 0.08, 0.09],
        [0.29, 0.17, 0.10],
        [0.52, 0.31, 0.15],
        [0.90, 0.74, 0.38],
        [0.96, 0.90, 0.72],
        [0.76, 0.28, 0.12],
        [0.62, 0.63, 0.66],
        [0.86, 0.35, 0.58],
        [0.25, 0.42, 0.78],
        [0.20, 0.58, 0.50],
    ]
)
EYE = torch.tensor([[0.26, 0.15, 0.08], [0.50, 0.32, 0.12], [0.24, 0.52, 0.24], [0.20, 0.45, 0.80], [0.50, 0.58, 0.64]])
LIPS = torch.tensor([[0.66, 0.40, 0.34], [0.80, 0.42, 0.40], [0.85, 0.22, 0.28], [0.60, 0.12, 0.24]])
FRAMES = torch.tensor([[0.10, 0.10, 0.12], [0.66, 0.14, 0.14], [0.15, 0.25, 0.60], [0.80, 0.62, 0.20]])
STYLES = ("bald", "short", "swept", "long", "bob", "afro", "mohawk", "bun")
STYLE_SHARES = (0.10, 0.16, 0.14, 0.16, 0.13, 0.12, 0.08, 0.11)


@dataclass(frozen=True)
class Pose:
    """What changes from picture to picture. All (B,) float32 unless noted.

    x, y: head centre in canvas units; size: half face height in canvas units; roll: radians; yaw, light: [-1, 1];
    gaze: [-1, 1]; shirt: (B, 3) in [0, 1]; expression, worn: int64 indices into EXPRESSIONS and WORN.
    """

    x: Tensor
    y: Tensor
    size: Tensor
    roll: Tensor
    yaw: Tensor
    light: Tensor
    gaze: Tensor
    shirt: Tensor
    expression: Tensor
    worn: Tensor


class Figure:
    """One person on every canvas of a batch; ``paint`` lays the layers from back to front."""

    def __init__(self, canvas: Canvas, factors: Tensor, moment: Pose, present: Tensor) -> None:
        self.canvas, self.moment = canvas, moment
        self.present = present.float()
        self.f = {name: factors[:, i] for i, name in enumerate(FACTORS)}
        m = moment
        du, dv = (canvas.x - col(m.x)) / col(m.size), (canvas.y - col(m.y)) / col(m.size)
        self.body_u, self.body_v = du, dv
        cos, sin = torch.cos(col(m.roll)), torch.sin(col(m.roll))
        self.u, self.v = du * cos + dv * sin, dv * cos - du * sin
        self._measure()

    def _measure(self) -> None:
        f, m = self.f, self.moment
        self.half_width = span(f["face_width"], 0.66, 0.90)
        self.half_height = span(f["face_length"], 0.90, 1.12)
        taper = span(f["jaw"], 0.06, 0.46)
        below = self.v.clamp(0.0, 1.2)
        self.outline = ellipse(self.u / (1.0 - col(taper) * below**2), self.v, self.half_width, self.half_height)
        self.skin = self._skin_colour()
        self.hair = pick(HAIR, classes(f["hair_colour"], (14, 13, 12, 12, 8, 12, 9, 7, 7, 6)))
        self.style = classes(f["hair_style"], STYLE_SHARES)
        self.fu = self.u - col(m.yaw) * 0.16  # features slide with yaw
        self.eye_gap = span(f["eye_spacing"], 0.30, 0.42)
        self.eye_v = -0.10
        self.eye_r = span(f["eye_size"], 0.135, 0.205) * torch.where(m.expression == 2, 1.15, 1.0)
        self.nose_v = span(f["nose_length"], 0.20, 0.34)
        self.mouth_v = torch.full_like(m.x, 0.60)
        self.mouth_w = span(f["mouth_width"], 0.23, 0.37)

    def _skin_colour(self) -> Tensor:
        base = ramp(SKIN, self.f["skin_tone"])
        warmth = (self.f["skin_warmth"] - 0.5)[:, None]
        tint = torch.tensor([[0.07, 0.0, -0.09]], device=base.device)
        return (base + warmth * tint).clamp(0.0, 1.0)

    def _lit(self, colour: Tensor) -> Tensor:
        """A flat colour (B, 3) as a picture-sized field, brighter towards the light."""
        slope = 1.0 + 0.16 * col(self.moment.light) * self.u.clamp(-1.2, 1.2)
        return (colour[:, :, None, None] * slope.unsqueeze(1)).clamp(0.0, 1.0)

    def lay(self, distance: Tensor, colour: Tensor, when: Tensor | None = None, opacity: float = 1.0) -> None:
        """Paint a shape where the figure is present and ``when``.

        The shape is given in face units: its distance scales with the figure.
        """
        shown = self.present if when is None else self.present * when.float()
        self.canvas.paint(distance * col(self.moment.size), colour, shown * opacity)

    def _is(self, *names: str) -> Tensor:
        wanted = [STYLES.index(n) for n in names]
        return torch.stack([self.style == w for w in wanted]).any(0)

    def paint(self) -> None:
        """Draw the whole figure."""
        self._back_hair()
        self._body()
        self._head()
        self._beard()
        self._mouth()
        self._nose()
        self._eyes()
        self._brows()
        self._glasses()
        self._front_hair()
        self._hats()

    def _back_hair(self) -> None:
        f, volume = self.f, self.f["hair_volume"]
        hair = self.hair * 0.86
        grow = span(volume, 1.08, 1.28)
        long = box(self.u, self.v - 0.45, self.half_width * grow + 0.04, span(volume, 1.05, 1.30))
        crown = ellipse(self.u, self.v + 0.12, self.half_width * grow + 0.04, self.half_height * 1.05)
        self.lay(either(both(long, -(self.v + 0.1)), crown), hair, self._is("long"))
        bob = either(crown, box(self.u, self.v - 0.15, self.half_width * grow + 0.06, span(volume, 0.62, 0.80)))
        self.lay(bob, hair, self._is("bob"))
        afro = ellipse(self.u, self.v + 0.32, span(volume, 1.12, 1.42), span(volume, 1.02, 1.24))
        self.lay(afro, hair, self._is("afro"))
        bun = ellipse(
            self.u, self.v + self.half_height.view(-1, 1, 1) + 0.16, span(volume, 0.28, 0.42), span(volume, 0.26, 0.38)
        )
        self.lay(bun, hair, self._is("bun"))
        mohawk = box(self.u, self.v + 0.95, span(volume, 0.13, 0.22), span(f["hairline"], 0.42, 0.62))
        self.lay(mohawk, hair, self._is("mohawk"))

    def _body(self) -> None:
        m = self.moment
        neck = box(self.body_u, self.body_v - 1.05, 0.30, 0.62)
        self.lay(neck, self._lit(self.skin * 0.82))
        torso = either(
            ellipse(self.body_u, self.body_v - 2.35, 1.42, 1.05), box(self.body_u, self.body_v - 3.4, 1.42, 1.05)
        )
        suit = m.worn == 2
        navy = torch.tensor([0.12, 0.14, 0.26], device=self.skin.device)
        self.lay(torso, torch.where(suit[:, None], navy, m.shirt))
        depth = self.body_v - 1.32
        vee = both(torso, self.body_u.abs() - 0.42 + 0.36 * depth)
        white = torch.full_like(self.skin, 0.96)
        self.lay(both(vee, -(depth - 0.02)), white, suit)
        tie = both(box(self.body_u, self.body_v - 2.2, 0.11, 0.85), torso)
        self.lay(tie, torch.tensor([[0.80, 0.10, 0.14]], device=self.skin.device).expand_as(self.skin), suit)

    def _head(self) -> None:
        f = self.f
        ear = span(f["ear_size"], 0.13, 0.26)
        for side in (-1.0, 1.0):
            lobe = ellipse(self.u - side * col(self.half_width), self.v - 0.05, ear * 0.75, ear)
            self.lay(lobe, self._lit(self.skin * 0.90))
            ring = ellipse(self.u - side * col(self.half_width + 0.04), self.v - 0.10 - col(ear), 0.075, 0.10)
            metal = torch.where(
                (f["earrings"] > 0.82)[:, None],
                torch.tensor([0.35, 0.70, 0.95], device=ear.device),
                torch.tensor([0.98, 0.80, 0.22], device=ear.device),
            )
            self.lay(ring, metal, f["earrings"] > 0.62)
        self.lay(self.outline, self._lit(self.skin))
        blush = torch.lerp(self.skin, torch.tensor([[0.93, 0.36, 0.36]], device=ear.device), 0.55)
        for side in (-1.0, 1.0):
            cheek = ellipse(self.fu - side * 0.46, self.v - 0.34, 0.20, 0.15)
            self.lay(both(cheek, self.outline), blush, f["blush"] > 0.65, 0.8)
        self._marks()

    def _marks(self) -> None:
        kind = classes(self.f["marks"], (0.58, 0.18, 0.12, 0.12))
        dark = self.skin * 0.55
        for side in (-1.0, 1.0):
            for du, dv in ((0.34, 0.26), (0.50, 0.34), (0.40, 0.42)):
                dot = ellipse(self.fu - side * du, self.v - dv, 0.045, 0.045)
                self.lay(dot, dark, kind == 1, 0.8)
        self.lay(ellipse(self.fu + 0.42, self.v - 0.44, 0.075, 0.075), dark * 0.6, kind == 2)
        self.lay(ellipse(self.fu - 0.42, self.v - 0.44, 0.075, 0.075), dark * 0.6, kind == 3)

    def _beard(self) -> None:
        kind = classes(self.f["beard"], (0.58, 0.13, 0.13, 0.16))
        hair = torch.where((self.style == 0)[:, None], self.hair * 0.8, self.hair * 0.88)
        jaw = both(self.outline, -(self.v - 0.34 - 0.25 * (self.fu.abs() - 0.3)))
        hollow = ellipse(self.fu, self.v - 0.56, self.mouth_w + 0.13, 0.21)
        self.lay(without(jaw, hollow), hair, kind == 3)
        goatee = both(ellipse(self.fu, self.v - 0.86, 0.25, 0.24), self.outline)
        self.lay(goatee, hair, kind == 2)
        lip = ellipse(self.fu, self.v - col(self.nose_v) - 0.20, self.mouth_w * 0.95 + 0.05, 0.095)
        self.lay(lip, hair, (kind == 1) | (kind == 3))

    def _mouth(self) -> None:
        f, expression = self.f, self.moment.expression
        colour = torch.lerp(ramp(LIPS, f["lip_colour"]), self.skin * 0.6, 0.25)
        full = span(f["lip_fullness"], 0.040, 0.095)
        v = self.v - col(self.mouth_v)
        rest = segment(self.fu, v, self.mouth_w * 0.72, full)
        self.lay(rest, colour, expression == 0)
        inside = torch.tensor([[0.30, 0.05, 0.07]], device=colour.device).expand_as(colour)
        wide = self.mouth_w * 1.18
        grin = both(ellipse(self.fu, v + 0.12, wide + 0.04, 0.33), -(v + 0.10))
        self.lay(grin, colour, expression == 1)
        teeth = both(ellipse(self.fu, v + 0.12, wide - 0.02, 0.25), -(v + 0.055))
        self.lay(teeth, torch.full_like(colour, 0.97), expression == 1)
        ring = ellipse(self.fu, v - 0.02, self.mouth_w * 0.62 + full * 0.6, 0.19 + full * 0.6)
        self.lay(ring, colour, expression == 2)
        self.lay(ellipse(self.fu, v - 0.02, self.mouth_w * 0.62 - full * 0.3, 0.17), inside, expression == 2)
        arc = ellipse(self.fu, v - 0.16, self.mouth_w * 0.95, 0.22)
        frown = both((arc + 0.02).abs() - col(full * 0.9 + 0.01), v - 0.08)
        self.lay(frown, colour * 0.9, expression == 3)

    def _nose(self) -> None:
        width = span(self.f["nose_width"], 0.08, 0.20)
        nu = self.u - col(self.moment.yaw) * 0.22
        v = self.v - col(self.nose_v)
        shade = self._lit(self.skin * 0.78)
        self.lay(ellipse(nu, v, width, 0.085), shade)
        bridge = box(nu, v + 0.18, width * 0.38, 0.17)
        self.lay(bridge, shade, opacity=0.55)

    def _eyes(self) -> None:
        m = self.moment
        tall = span(self.f["eye_shape"], 0.72, 1.08) * torch.where(m.expression == 1, 0.80, 1.0)
        iris = ramp(EYE, self.f["eye_colour"])
        for side in (-1.0, 1.0):
            eu, ev = self.fu - side * col(self.eye_gap), self.v - self.eye_v
            white = ellipse(eu, ev, self.eye_r * 1.12, self.eye_r * tall)
            self.lay(white - 0.035, self._lit(self.skin * 0.50))
            self.lay(white, torch.full_like(iris, 0.98))
            gu = eu - 0.055 * col(m.gaze)
            self.lay(both(ellipse(gu, ev, self.eye_r * 0.66, self.eye_r * 0.66), white), iris)
            self.lay(both(ellipse(gu, ev, self.eye_r * 0.33, self.eye_r * 0.33), white), iris * 0.15)
            tear = ellipse(eu - side * 0.03, ev - 0.42, 0.085, 0.30)
            blue = torch.tensor([[0.35, 0.72, 1.0]], device=iris.device).expand_as(iris)
            self.lay(tear, blue, m.expression == 3)

    def _brows(self) -> None:
        f, expression = self.f, self.moment.expression
        thick = span(f["brow_thickness"], 0.030, 0.085)
        length = span(f["brow_length"], 0.15, 0.24)
        lift = torch.where(expression == 2, 0.12, 0.0)
        tilt = span(f["brow_tilt"], -0.30, 0.30) + torch.where(expression == 3, -0.35, 0.0)
        colour = torch.where((self.style == 0)[:, None], self.hair * 0.6, self.hair * 0.72)
        for side in (-1.0, 1.0):
            bu = (self.fu - side * col(self.eye_gap)) * side
            bv = self.v + 0.36 + col(lift) + col(tilt) * bu
            self.lay(segment(bu, bv, length, thick), colour)

    def _glasses(self) -> None:
        worn = self.moment.worn == 3
        kind = classes(self.f["glasses"], (0.62, 0.20, 0.18))
        frame = pick(FRAMES, classes(self.f["glasses_colour"], (0.4, 0.2, 0.2, 0.2)))
        v = self.v - self.eye_v
        for side in (-1.0, 1.0):
            eu = self.fu - side * col(self.eye_gap)
            lens = box(eu, v - 0.03, 0.30, 0.20) - 0.02
            self.lay(lens, torch.full_like(frame, 0.07), worn)
            self.lay(ellipse(eu, v, 0.27, 0.27).abs() - 0.036, frame, (kind == 1) & ~worn)
            self.lay(box(eu, v, 0.27, 0.21).abs() - 0.036, frame, (kind == 2) & ~worn)
        bridge = segment(self.fu, v, 0.08, 0.035)
        self.lay(bridge, torch.where(worn[:, None], torch.full_like(frame, 0.07), frame), worn | (kind > 0))

    def _front_hair(self) -> None:
        f = self.f
        line = span(f["hairline"], -0.52, -0.74)
        hat = (self.moment.worn == 1) | (self.moment.worn == 4)
        cap = self.outline - span(f["hair_volume"], 0.03, 0.12).view(-1, 1, 1)
        top = both(cap, self.v - col(line))
        curved = both(cap, self.v - col(line) - 0.22 * (self.u / 0.8) ** 2)
        lit = self._lit(self.hair)
        self.lay(curved, lit, self._is("short", "afro", "bun"))
        swept = both(
            cap,
            self.v - col(line) - 0.32 * self.u * torch.where(f["hair_volume"] > 0.5, 1.0, -1.0).view(-1, 1, 1) - 0.06,
        )
        self.lay(swept, lit, self._is("swept"))
        parted = both(cap, self.v - col(line) - 0.55 * self.u.abs() + 0.12)
        self.lay(parted, lit, self._is("long"))
        fringe = both(cap, self.v - col(line) - 0.16)
        self.lay(fringe, lit, self._is("bob"))
        ridge = both(
            either(top, box(self.u, self.v + 0.95, span(f["hair_volume"], 0.13, 0.22), 0.3)),
            self.u.abs() - col(span(f["hair_volume"], 0.13, 0.22)),
        )
        self.lay(ridge, lit, self._is("mohawk") & ~hat)

    def _hats(self) -> None:
        worn = self.moment.worn
        device = self.skin.device
        red = torch.tensor([[0.85, 0.10, 0.12]], device=device).expand_as(self.skin)
        dome = both(ellipse(self.u, self.v + 0.62, 0.82, 0.72), self.v + 0.52)
        brim = segment(self.u, self.v + 0.54, 0.98, 0.10)
        self.lay(dome, self._lit(red), worn == 1)
        self.lay(brim, self._lit(red * 0.82), worn == 1)
        gold = torch.tensor([[0.99, 0.80, 0.15]], device=device).expand_as(self.skin)
        teeth = 0.30 * (1.0 - ((self.u * 2.2 + 0.5) % 1.0 - 0.5).abs() * 2.0)
        crown = both(box(self.u, self.v + 0.80, 0.70, 0.28), -(self.v + 0.80 + teeth))
        self.lay(crown, self._lit(gold), worn == 4)

    def landmarks(self) -> Tensor:
        """Left eye, right eye, nose, left and right mouth corner as (B, 5, 2) canvas coordinates (x, y)."""
        m = self.moment
        slide = m.yaw * 0.16
        rows = [
            (slide - self.eye_gap, torch.full_like(slide, self.eye_v)),
            (slide + self.eye_gap, torch.full_like(slide, self.eye_v)),
            (m.yaw * 0.22, self.nose_v),
            (slide - self.mouth_w, self.mouth_v),
            (slide + self.mouth_w, self.mouth_v),
        ]
        local = torch.stack([torch.stack(row, -1) for row in rows], 1)
        return self._to_canvas(local)

    def face_box(self) -> Tensor:
        """The face as (B, 4) canvas coordinates x1, y1, x2, y2 (roll ignored, as detectors do)."""
        m = self.moment
        half = torch.stack([self.half_width, self.half_height], -1) * m.size[:, None]
        centre = torch.stack([m.x, m.y], -1)
        return torch.cat([centre - half, centre + half], -1)

    def _to_canvas(self, local: Tensor) -> Tensor:
        m = self.moment
        cos, sin = torch.cos(m.roll)[:, None], torch.sin(m.roll)[:, None]
        u, v = local[..., 0], local[..., 1]
        x = m.x[:, None] + (u * cos - v * sin) * m.size[:, None]
        y = m.y[:, None] + (u * sin + v * cos) * m.size[:, None]
        return torch.stack([x, y], -1)
