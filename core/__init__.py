"""Everything of Atelier except the page. Nothing in this package imports gradio."""

import sys

__version__ = "0.4.34"  # of the newest release in CHANGELOG.md

# Where the package `kernels` is installed, bitsandbytes, transformers and diffusers download code from the Hub with it and run it,
# without asking: for this process it counts as not installed.
sys.modules["kernels"] = None  # type: ignore[assignment]
