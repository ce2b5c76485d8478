"""Whether a photo is good to learn a person from: grades of one face, and the photo with the findings drawn on it.

Every grade is a measurement with two thresholds, set on a handful of photographs and on drawn portraits: a pointer, not
a proof. Not detected: the wrong person, a mask, hat or sunglasses that cover both halves alike, make-up and filters,
and blur hidden by film grain.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from celebctl_models.faces.analysis import Face

Verdict = Literal["good", "fair", "poor"]
Recognise = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Floats = NDArray[np.float64]
Faults = tuple[tuple[Verdict, str], ...]

CROP = 112  # pixels, side of the recogniser's template
NATIVE = 512  # pixels, the image size of models that do not declare one

# The recogniser's template (insightface.utils.face_align, 112 px): eye to eye, eye line to nose tip, to mouth line.
_EYES, _NOSE, _MOUTH = 35.2, 20.1, 40.7
# The distance of the nose tip from the plane of eyes and mouth: 0.43 of the eyes' distance in the generic five-point
# head of pose estimation.
_DEPTH = 0.43 * _EYES
_DETAIL = 224  # pixels: larger faces are reduced to it before sharpness is measured; models of 512 px draw about this


@dataclass(frozen=True)
class Grade:
    """One grade: its name, verdict, finding (with what to do about it), and the numbers measured."""

    name: str
    verdict: Verdict
    finding: str
    measured: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, eq=False)
class Report:
    """The grades of face `number` (from 1 at the left) of `faces`; `usable` when learning accepts it."""

    faces: Sequence[Face]
    number: int
    grades: Sequence[Grade]
    usable: bool

    @property
    def face(self) -> Face:
        """The graded face."""
        return self.faces[self.number - 1]

    @property
    def verdict(self) -> Verdict:
        """The worst grade."""
        return worst([grade.verdict for grade in self.grades])

    @property
    def summary(self) -> str:
        """The verdict as a sentence."""
        weak = [grade.name for grade in self.grades if grade.verdict == self.verdict]
        if not self.usable:
            return "too small to learn from"
        if self.verdict == "good":
            return "a good photo to learn from"
        if self.verdict == "fair":
            return f"usable, with weaknesses: {', '.join(weak)}"
        return f"likeness will be weak: {', '.join(weak)}"


def check_face(
    photo: Image.Image, faces: Sequence[Face], pick: int | None, *, min_face: int, native: int, recognise: Recognise
) -> Report:
    """Grade one face of a photo.

    Args:
        photo: RGB.
        faces: From left to right, at least one.
        pick: The face to grade, from 1; None: the largest.
        min_face: The smallest face side in pixels that learning accepts.
        native: The side in pixels of the images that the model draws.
        recognise: Crop (112, 112, 3) uint8 RGB -> unit feature, to compare the face with its mirror image.
    """
    number = pick or 1 + max(range(len(faces)), key=lambda index: faces[index].size)
    face = faces[number - 1]
    grades = [
        grade_size(face, min_face, native),
        grade_sharpness(photo, face),
        grade_pose(face),
        grade_light(face.crop112),
        grade_halves(face.crop112, recognise),
        grade_eyes(face.crop112),
        grade_framing(photo.size, face),
        grade_detection(face.score),
        grade_face_count(len(faces), pick),
    ]
    return Report(faces, number, grades, face.size >= min_face)


def grade_size(face: Face, min_face: int, native: int) -> Grade:
    """The face's shorter side against the recogniser's crop and the size of the model's images."""
    size, wanted = face.size, max(CROP, native // 2)
    verdict = _at_least(size, wanted, max(min_face, wanted / 2))
    finding = f"the face is {size:.0f} px wide"
    if size < min_face:
        verdict, finding = "poor", f"{finding}, and learning refuses less than {min_face}; use a larger photo"
    elif verdict != "good":
        finding = f"{finding}; {wanted} or more is better: use the original file, or go closer"
    return Grade("size", verdict, finding, {"px": round(size, 1), "wanted_px": wanted, "min_px": min_face})


def grade_sharpness(photo: Image.Image, face: Face) -> Grade:
    """Detail between eyes and mouth, from the photo's own pixels."""
    value = sharpness(photo, face.landmarks)
    verdict = _at_least(value, 0.05, 0.015)
    finding = {
        "good": "eyes and mouth are sharp",
        "fair": "somewhat soft; a sharper photo, or one that was not enlarged, would show more",
        "poor": "blurred; hold still, focus on the eyes, and do not enlarge the photo",
    }[verdict]
    return Grade("sharpness", verdict, finding, {"laplacian": round(value, 4)})


def sharpness(photo: Image.Image, landmarks: NDArray[np.float32]) -> float:
    """Variance of the Laplacian over the variance of the grey values, in a square around eyes, nose and mouth.

    The ratio does not depend on contrast. Large faces are first reduced to 224 px, so that it does not depend much on
    size either; small ones are taken as they are, because enlarging would look like blur. 0 for no detail at all.
    """
    centre = landmarks.mean(axis=0)
    eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
    half = 1.1 * max(float(np.linalg.norm(mouth - eyes)), float(np.linalg.norm(landmarks[1] - landmarks[0])), 4.0)
    left, top = (max(0, round(float(edge))) for edge in centre - half)
    right, bottom = (min(end, round(float(edge))) for edge, end in zip(centre + half, photo.size, strict=True))
    if min(right - left, bottom - top) < 4:
        return 0.0
    grey = photo.crop((left, top, right, bottom)).convert("L")
    grey.thumbnail((_DETAIL, _DETAIL), Image.Resampling.LANCZOS)
    x = np.asarray(grey, np.float64)
    laplacian = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    return float(laplacian.var() / max(float(x.var()), 1.0))


def pose(landmarks: NDArray[np.float32]) -> tuple[float, float, float]:
    """Roll, yaw and pitch in degrees, from five landmarks (5, 2) under parallel projection.

    roll: of the eye line, clockwise in the picture. yaw: to the picture's right, from how far the nose tip lies off the
    line between the middles of eyes and mouth. pitch: upwards, from how far down that line it lies. Yaw and pitch
    assume an average head: take them as rough, within some ten degrees.
    """
    right_eye, left_eye, nose, *mouth = (complex(float(x), float(y)) for x, y in landmarks)
    eyes, lips = (right_eye + left_eye) / 2, (mouth[0] + mouth[1]) / 2
    across, down = left_eye - right_eye, lips - eyes
    if abs(across) == 0.0 or abs(down) == 0.0:
        return 0.0, 0.0, 0.0
    offset = (nose - eyes) / (down / abs(down))  # real part: down the face; imaginary part: to the picture's left
    yaw = np.arctan2(-offset.imag * _EYES, _DEPTH * abs(across))
    # Two measures of the face's size, because a smile shortens the one and a turned head the other.
    size = (abs(down) / _MOUTH + abs(across) / np.cos(yaw) / _EYES) / 2
    pitch = np.arctan2(_NOSE - offset.real / size, _DEPTH)
    return float(np.degrees(np.angle(across))), float(np.degrees(yaw)), float(np.degrees(pitch))


def grade_pose(face: Face) -> Grade:
    """Whether the face is frontal and upright."""
    roll, yaw, pitch = pose(face.landmarks)
    faults: Faults = (
        (_at_most(abs(yaw), 20, 35), f"turned about {abs(yaw):.0f}° to the {'right' if yaw > 0 else 'left'}"),
        (_at_most(abs(pitch), 18, 28), f"looking {'up' if pitch > 0 else 'down'}, about {abs(pitch):.0f}°"),
        (_at_most(abs(roll), 15, 35), f"tilted {abs(roll):.0f}° to the {'right' if roll > 0 else 'left'}"),
    )
    verdict = worst([verdict for verdict, _ in faults])
    texts = [text for one, text in faults if one != "good"]
    finding = f"{', '.join(texts)}; look straight into the camera" if texts else "seen from the front"
    return Grade("pose", verdict, finding, {"roll": round(roll, 1), "yaw": round(yaw, 1), "pitch": round(pitch, 1)})


def grade_light(crop: NDArray[np.uint8]) -> Grade:
    """Brightness, contrast, burnt-out skin and light from one side, in the middle of the crop (112, 112, 3) uint8.

    Darkness is judged by the brightest twentieth, not by the mean: dark skin in good light has highlights, too.
    """
    y, x = np.mgrid[:CROP, :CROP]
    inside = ((x - 55.5) / 32) ** 2 + ((y - 70) / 38) ** 2 < 1
    luma = _luma(crop)
    low, high = (float(value) for value in np.percentile(luma[inside], (5, 95)))
    burnt = float((luma[inside] >= 252).mean())
    left, right = (float(np.median(luma[inside & side])) for side in (x < 55.5, x > 55.5))
    uneven = abs(left - right) / max(left, right, 1.0)
    faults: Faults = (
        (_at_least(high, 110, 70), "dark; turn towards a window or a lamp"),
        (_at_least(high - low, 45, 25), "flat, with hardly any contrast; avoid fog, filters and strong backlight"),
        (_at_most(burnt, 0.1, 0.25), "parts of the skin are burnt out to white; use softer light or no flash"),
        (_at_most(uneven, 0.35, 0.55), "the light comes from one side; face the light"),
    )
    verdict = worst([verdict for verdict, _ in faults])
    finding = "; ".join(text for one, text in faults if one != "good") or "even and bright enough"
    numbers = {"mean": float(luma[inside].mean()), "contrast": high - low, "burnt": burnt, "uneven": uneven}
    return Grade("light", verdict, finding, {name: round(value, 3) for name, value in numbers.items()})


def grade_halves(crop: NDArray[np.uint8], recognise: Recognise) -> Grade:
    """Whether one half is covered: the crop against its mirror image, in pixels and in the recogniser's feature."""
    mirrored = np.ascontiguousarray(crop[:, ::-1])
    alike = mirror_likeness(crop)
    agreed = float(recognise(crop) @ recognise(mirrored))
    verdict = worst([_at_least(alike, 0.55, 0.4), _at_least(agreed, 0.7, 0.5)])
    if verdict == "good":
        finding = "both halves of the face look alike (this does not detect a mask)"
    else:
        finding = (
            "the halves differ: hair, a hand or a phone before the face? A turned head or side light causes it, too"
        )
    return Grade("halves", verdict, finding, {"mirror_pixels": round(alike, 3), "mirror_feature": round(agreed, 3)})


def grade_eyes(crop: NDArray[np.uint8]) -> Grade:
    """Whether the eyes are covered: the share of their band in the crop (112, 112, 3) uint8 far darker than the cheeks.

    Measured on drawn people, 24 each: at most .54 with bare eyes, a hat or a crown, at least .81 with sunglasses. Never
    worse than fair: it was not measured on photographs.
    """
    luma = _luma(crop)
    cheeks = np.concatenate([luma[66:80, 28:42].ravel(), luma[66:80, 70:84].ravel()])
    dark = float((luma[44:60, 26:86] < 0.6 * np.median(cheeks)).mean())
    verdict = _at_most(dark, 0.68, 1.0)
    finding = (
        "nothing dark over the eyes" if verdict == "good" else "sunglasses? take them off, the eyes cannot be seen"
    )
    return Grade("eyes", verdict, finding, {"dark": round(dark, 3)})


def mirror_likeness(crop: NDArray[np.uint8]) -> float:
    """Correlation, -1 to 1, of one half of the face in a crop (112, 112, 3) uint8 with the other, mirrored.

    The best of several axes: a slightly turned face has its middle to one side of the crop's.
    """
    soft = np.asarray(Image.fromarray(crop).convert("L").filter(ImageFilter.GaussianBlur(2)), np.float64)[40:106]
    found: list[float] = []
    for axis in range(48, 65, 2):
        left, right = soft[:, axis - 32 : axis], soft[:, axis : axis + 32][:, ::-1]
        left, right = left - left.mean(), right - right.mean()
        lengths = float(np.linalg.norm(left)), float(np.linalg.norm(right))
        # Two empty halves are alike, an empty one and a full one are not.
        both = lengths[0] * lengths[1]
        found.append(float((left * right).sum()) / both if both > 0 else float(lengths[0] == lengths[1]))
    return max(found)


def grade_framing(photo_size: tuple[int, int], face: Face) -> Grade:
    """How much of the head with some room around it lies inside the photo."""
    x0, y0, x1, y1 = (float(edge) for edge in face.box)
    middle, half = ((x0 + x1) / 2, (y0 + y1) / 2 - 0.06 * (y1 - y0)), 0.75 * (y1 - y0)
    inside = 1.0
    for centre, length in zip(middle, photo_size, strict=True):
        inside *= max(0.0, min(centre + half, length) - max(centre - half, 0.0)) / (2 * half)
    verdict = _at_least(inside, 0.75, 0.6)
    finding = {
        "good": "there is room around the head",
        "fair": "cropped tightly; hair and shoulders help learning",
        "poor": "much of the head is outside the photo; use one that shows all of it",
    }[verdict]
    return Grade("framing", verdict, finding, {"inside": round(inside, 3)})


def grade_detection(score: float) -> Grade:
    """The detector's confidence."""
    verdict = _at_least(score, 0.6, 0.5)
    finding = (
        "clearly a face" if verdict == "good" else "hard to see: turned away, covered, blurred, or no face at all?"
    )
    return Grade("detection", verdict, finding, {"score": round(score, 3)})


def grade_face_count(count: int, pick: int | None) -> Grade:
    """Whether the face to learn is unambiguous."""
    measured = {"count": count}
    if count == 1:
        return Grade("faces", "good", "one face", measured)
    if pick is not None:
        return Grade("faces", "good", f"{count} faces; number {pick} was chosen", measured)
    return Grade("faces", "fair", f"{count} faces; this is the largest; choose one by its number to be sure", measured)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst verdict."""
    return "poor" if "poor" in verdicts else "fair" if "fair" in verdicts else "good"


def _at_least(value: float, good: float, fair: float) -> Verdict:
    return "good" if value >= good else "fair" if value >= fair else "poor"


def _at_most(value: float, good: float, fair: float) -> Verdict:
    return "good" if value <= good else "fair" if value <= fair else "poor"


def _luma(crop: NDArray[np.uint8]) -> Floats:
    """(112, 112, 3) uint8 RGB to (112, 112) ITU-R BT.601 brightness, 0 to 255."""
    return crop.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


# Drawing.

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
BACKGROUND, TEXT, GREY = (250, 249, 246), (52, 50, 47), (118, 115, 109)
COLOURS: dict[Verdict, Colour] = {"good": (46, 125, 50), "fair": (201, 124, 0), "poor": (190, 40, 40)}
_LONGEST, _PANEL, _MARGIN, _MAX_HEIGHT = 768, 400, 20, 1600  # pixels


def annotate(photo: Image.Image, report: Report | None) -> Image.Image:
    """The photo with boxes and landmarks, and the grades beside it (below a wide photo). None: no face was found."""
    scale = _LONGEST / max(photo.size)
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    shown = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    for number, face in enumerate(report.faces if report else (), 1):
        _mark(shown, face, number, report if report and number == report.number else None, scale)
    beside = size[0] <= 1.3 * size[1]
    panel = _panel(report, _PANEL if beside else max(size[0], _PANEL))
    right, below = (size[0], 0) if beside else (0, size[1])
    page = Image.new("RGB", (max(size[0], right + panel.width), max(size[1], below + panel.height)), BACKGROUND)
    page.paste(shown, (0, 0))
    page.paste(panel, (right, below))
    return page


def _mark(shown: Image.Image, face: Face, number: int, report: Report | None, scale: float) -> None:
    """Box, number and landmarks of one face; the graded one in the colour of its verdict."""
    draw = ImageDraw.Draw(shown)
    colour = GREY if report is None else COLOURS[report.verdict]
    x0, y0, x1, y1 = (float(edge) * scale for edge in face.box)
    draw.rectangle((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)), outline=colour, width=3)
    left, top = max(0.0, min(x0, shown.width - 28.0)), max(0.0, min(y0 - 28, shown.height - 26.0))
    draw.rectangle((left, top, left + 28, top + 24), fill=colour)
    draw.text((left + 14, top + 12), str(number), fill="white", font=ImageFont.load_default(18), anchor="mm")
    for x, y in face.landmarks * scale if report else ():
        draw.circle((float(x), float(y)), 6, fill=colour, outline="white", width=2)


def _panel(report: Report | None, width: int) -> Image.Image:
    """The verdict and one paragraph per grade, as high as they need."""
    if report is None:
        heading, verdict = "no face was found", "poor"
        rows: list[tuple[Verdict, str, str]] = [("poor", "what helps", "a sharp photo of one face from the front")]
    else:
        heading, verdict = report.summary, report.verdict
        rows = [(grade.verdict, f"{grade.name}: {grade.verdict}", grade.finding) for grade in report.grades]
    title, body = ImageFont.load_default(24), ImageFont.load_default(16)
    page = Image.new("RGB", (width, _MAX_HEIGHT), BACKGROUND)
    draw, y, left = ImageDraw.Draw(page), _MARGIN, _MARGIN + 26
    for line in _wrapped(draw, heading, title, width - 2 * _MARGIN):
        draw.text((_MARGIN, y), line, fill=COLOURS[verdict], font=title)
        y += 30
    for one, head, finding in rows:
        y += 14
        draw.circle((_MARGIN + 8, y + 10), 7, fill=COLOURS[one])
        for line in (head, *_wrapped(draw, finding, body, width - _MARGIN - left)):
            draw.text((left, y), line, fill=TEXT if line == head or one != "good" else GREY, font=body)
            y += 21
    return page.crop((0, 0, width, y + _MARGIN))


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> list[str]:
    """`text` in lines that fit into `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
