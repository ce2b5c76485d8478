"""Measuring people in pictures: likeness, obedience to the prompt, two people kept apart, and what each costs.

    prompts   what is asked for, in the paper's categories
    panel     judges: faces, looks, poses and scenes of a picture, by networks that learning never uses
    truth     what a person really looks like: renders of a drawn world, or the photo
    record    what was seen of one person, on disk; an interrupted run goes on from there
    session   drawing and judging, person by person
    metrics   records to figures with confidence intervals over people
    charts, page   figures to charts (matplotlib), and everything to one HTML file (jinja2)

What this package does not know: how people are learned. Whoever can draw a prompt can be measured.
"""
