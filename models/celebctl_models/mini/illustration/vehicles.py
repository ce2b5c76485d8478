"""What people drive and fly, drawn around one person."""

from __future__ import annotations

from .figure import Figure
from .shapes import both, box, circle, either, ellipse, limb, polygon

#: Cosine and sine of the five directions of a star.
STAR = ((1.0, 0.0), (0.309, 0.951), (-0.809, 0.588), (-0.809, -0.588), (0.309, -0.951))


def motorbike(figure: Figure) -> None:
    """A motorbike seen from the front, ridden."""
    window = figure.body(0.0, 3.55, (1.45, 1.95))
    u, v = window.u, window.v + 0.26
    tone = figure.pose.item
    window.draw(box(u, v - 4.70, 0.24, 1.06, 0.22), (0.18, 0.18, 0.21))
    window.paint(box(u, v - 4.70, 0.09, 0.94, 0.09), (0.32, 0.32, 0.36))
    for side in (-1.0, 1.0):
        window.draw(limb(u * side, v, (0.34, 2.7), (0.32, 4.6), (0.075, 0.065)), (0.82, 0.84, 0.88))
        window.draw(limb(u * side, v, (0.10, 2.62), (1.00, 2.40), (0.07, 0.06)), (0.62, 0.64, 0.70))
        window.draw(limb(u * side, v, (0.92, 2.42), (1.22, 2.36), (0.10, 0.10)), (0.16, 0.16, 0.18))
        window.draw(limb(u * side, v, (0.62, 2.46), (0.80, 2.06), (0.03, 0.03)), (0.30, 0.30, 0.33))
        window.draw(ellipse(u * side - 0.84, v - 1.98, 0.17, 0.12), (0.70, 0.82, 0.90))
    window.draw(both(box(u, v - 3.92, 0.36, 0.34, 0.28), v - 4.05), tone)
    window.draw(box(u, v - 2.92, 0.48, 0.42, 0.26), tone)
    window.draw(circle(u, v - 2.90, 0.30), (0.84, 0.86, 0.90))
    window.paint(circle(u, v - 2.90, 0.23), (1.0, 0.96, 0.74))
    window.lighten(circle(u + 0.08, v - 2.82, 0.08), 0.9, soft=0.05)
    window.close()


def jet(figure: Figure) -> None:
    """A small fighter jet from the front, its pilot looking over the cockpit's edge."""
    window = figure.body(0.0, 3.20, (2.35, 2.35))
    u, v = window.u, window.v + 0.42
    tone = figure.pose.item
    for side in (-1.0, 1.0):
        wing = polygon(u * side, v, [(0.5, 3.00), (2.25, 3.36), (2.25, 3.50), (0.5, 3.60)])
        window.draw(wing, tone * 0.92)
        window.draw(limb(u * side, v, (1.55, 3.62), (1.55, 3.78), (0.13, 0.11)), (0.93, 0.93, 0.92))
        window.draw(limb(u * side, v, (0.40, 4.3), (0.52, 5.5), (0.06, 0.06)), (0.62, 0.64, 0.70))
        window.draw(ellipse(u * side - 0.52, v - 5.62, 0.12, 0.21), (0.20, 0.20, 0.23))
        window.draw(ellipse(u * side - 0.92, v - 3.30, 0.24, 0.30), tone * 0.86)
        window.paint(ellipse(u * side - 0.92, v - 3.30, 0.16, 0.21), (0.15, 0.16, 0.20))
    hull = both(ellipse(u, v - 3.30, 0.92, 1.28), 2.30 - v)
    window.draw(hull, tone)
    window.darken(both(hull, 0.30 - u.abs() + 0.3 * u * figure.pose.light), 0.32, soft=0.5)
    window.draw(both(ellipse(u, v - 2.36, 0.70, 0.14), ellipse(u, v - 3.30, 0.92, 1.28)), (0.32, 0.34, 0.40))
    glass = both(ellipse(u, v - 2.38, 0.66, 0.42), v - 2.36)
    window.paint(glass, (0.72, 0.88, 1.0), 0.28)
    window.stroke(both(ellipse(u, v - 2.38, 0.66, 0.42).abs(), v - 2.36), (0.45, 0.50, 0.58))
    window.draw(circle(u, v - 3.46, 0.30), (0.97, 0.96, 0.93))
    points = [(0.0, -0.26), (0.075, 0.0), (-0.075, 0.0)]
    down = v - 3.46
    star = either(*(polygon((u * c + down * s).abs(), down * c - u * s, points) for c, s in STAR))
    window.paint(star, (0.86, 0.26, 0.26))
    window.lighten(ellipse(u - 0.34 * figure.pose.light, v - 2.86, 0.16, 0.24), 0.40, soft=0.18)
    window.close()
