"""SDXL's refiner: OpenCLIP's bigG alone, and a U-Net that reads an aesthetic score in place of the image's size.

It finishes the images of an SDXL model (Podell et al. 2023, arXiv:2307.01952, section 2.5).
"""

from dataclasses import replace

from core.families import sdxl
from core.families.layouts import LAYOUTS

FAMILY = replace(sdxl.FAMILY, layout=LAYOUTS["sdxl_refiner"], size_numbers=5, input_blocks=None)
