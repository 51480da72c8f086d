"""Tiny models of the families with more than SD 1's parts."""

from functools import cached_property

import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from tests.models import tiny_folder


class Tiny:
    """A tiny model's folder, its components and diffusers' pipeline of the same folder."""

    def __init__(self, name, folder):
        from core.families import family

        self.name, self.folder, self.family = name, folder, family(name)
        self.components = self.family.load(folder)

    @cached_property
    def pipeline(self):
        kind = StableDiffusionXLPipeline if self.name == "sdxl" else StableDiffusionPipeline
        return kind.from_pretrained(self.folder, local_files_only=True)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Name of a family -> its tiny model, made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = Tiny(name, tiny_folder(name, tmp_path_factory.mktemp("tiny") / name))
        return made[name]

    return make


@pytest.fixture(params=["sd2", "sdxl"])
def tiny(request, tiny_models):
    return tiny_models(request.param)
