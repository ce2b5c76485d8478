"""Names of samplers in other programs."""

from __future__ import annotations

import difflib
import re

from celebctl_runtime.errors import InvalidInputError
from celebctl_runtime.request import SAMPLERS

#: Ours -> as the Stable Diffusion web UI names it (modules/sd_samplers_kdiffusion.py).
WEBUI = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "lcm": "LCM",
}
#: Ours -> as InvokeAI names it (backend/stable_diffusion/schedulers/schedulers.py).
INVOKEAI = {name: name for name in SAMPLERS} | {"dpmpp_2m_karras": "dpmpp_2m_k"}

_PLAIN_SCHEDULES = {"", "automatic", "uniform", "normal"}


def sampler_from(name: str, schedule: str = "") -> str:
    """The sampler that another program calls ``name``.

    Args:
        name: Such as "Euler a", "DPM++ 2M Karras", "k_euler_a" or "dpmpp_2m_k".
        schedule: The web UI's "Schedule type", where it is apart: "Karras", "Automatic", ...

    Raises:
        InvalidInputError: celebctl has no such sampler (reason "recipe_sampler", values ``name`` and ``nearest``).

    Example:
        >>> sampler_from("DPM++ 2M", "Karras"), sampler_from("k_euler_a")
        ('dpmpp_2m_karras', 'euler_a')
    """
    wanted = re.sub(r"[\s-]+", "_", name[:100].strip().casefold().replace("++", "pp")).removeprefix("k_")
    wanted = re.sub(r"_ka?$", "_karras", wanted).replace("ancestral", "a")
    kind = re.sub(r"[\s_-]+", "_", schedule[:100].strip().casefold())
    plain = wanted
    if kind not in _PLAIN_SCHEDULES and not wanted.endswith(f"_{kind}"):
        wanted = f"{wanted}_{kind}"
    if kind == "automatic" and wanted == "dpmpp_2m":  # the web UI's default schedule of this sampler
        wanted = "dpmpp_2m_karras"
    if wanted in SAMPLERS:
        return wanted
    nearest = plain if plain in SAMPLERS else difflib.get_close_matches(wanted, SAMPLERS, n=1, cutoff=0.0)[0]
    full = f"{name[:100]} {schedule[:100]}".strip()
    raise InvalidInputError(
        f"there is no sampler {full!r} in celebctl; the nearest is {nearest}",
        f"pass one of {', '.join(SAMPLERS)}",
        reason="recipe_sampler",
        name=full,
        nearest=nearest,
    )
