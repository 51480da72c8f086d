"""Registers the built-in preprocessors. Listed in core/extensions.py."""

import core.settings.generation.controls
import core.settings.tools.hints  # noqa: F401  choices are added to the settings of both
from core import extensions
from core.control.hints import Preprocessor, groups_of, register
from core.settings.growth import add_choice
from core.settings.hints import BY_MODEL, AnyHintSettings

EDGES, PLAIN, RANDOM = (f"core.control.hints.{name}" for name in ("edges", "plain", "random_parts"))
CANNY = ("edge_low", "edge_high")

register(Preprocessor("canny", "Canny edges", extensions.later(EDGES, "canny_lines"), CANNY))
register(Preprocessor("soft_edges", "Soft edges", extensions.later(EDGES, "soft_edges"), ("edge_blur", "edge_gain")))
register(Preprocessor("scribble", "Scribble", extensions.later(EDGES, "scribble"), ("edge_blur", *CANNY, "line_width")))
register(Preprocessor("grayscale", "Grayscale", extensions.later(PLAIN, "grayscale")))
register(Preprocessor("invert", "Invert", extensions.later(PLAIN, "inverted")))
register(Preprocessor("blur", "Blur", extensions.later(PLAIN, "blurred"), ("blur_radius",)))
register(Preprocessor("tile", "Tile", extensions.later(PLAIN, "tiled"), ("tile_factor",)))
register(Preprocessor("shuffle", "Color shuffle", extensions.later(RANDOM, "shuffled"), ("hint_seed",)))
register(Preprocessor("inpaint", "Inpaint mask", extensions.later(RANDOM, "masked"), ("mask_share", "hint_seed")))

for _group in groups_of(AnyHintSettings):
    add_choice(_group, "preprocessor", BY_MODEL, "ONNX model")
