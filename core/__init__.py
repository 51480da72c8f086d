"""Everything of Atelier except the page. Nothing in here imports gradio."""

import sys

__version__ = "0.4.24"  # of the newest release in CHANGELOG.md

# bitsandbytes, transformers and diffusers fetch code from the Hub through the package `kernels` where it is installed, and run
# it. Nobody was asked, so for this process it is not installed.
sys.modules["kernels"] = None  # type: ignore[assignment]
