"""Seeded synthetic sites for the demo: an office, a crossroads, a car park at night, and scenes that are none of them.

Boxes are the tight extent of what is visible. An object has no box if less than a quarter of its own area is visible
(the rest hidden by other things or outside the frame), or if a side of its box is under 8 pixels.
"""

from manyeyes.datasets.scenes.sites import CLASSES, DOMAINS, render_scene
from manyeyes.datasets.scenes.write import contact_sheet, split_sizes, write_scenes

__all__ = ["CLASSES", "DOMAINS", "contact_sheet", "render_scene", "split_sizes", "write_scenes"]
