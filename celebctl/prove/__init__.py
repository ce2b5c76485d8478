"""One run of everything on one machine with one model, as a page and a JSON document to send to the project.

| module | content |
|---|---|
| run | the run in its folder: options, people, what stages share |
| stages | what is measured: installation, model, learning, export, images per device, engines, speed, likeness |
| execute | one stage after the other; finished stages are not repeated, a failed one stops no other |
| report | the page |
"""

from .execute import prove
from .run import MAX_BYTES, ProveOptions, ProveRun

__all__ = ["MAX_BYTES", "ProveOptions", "ProveRun", "prove"]
