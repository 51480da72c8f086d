"""Tiny whole models, made once for all tests of formats."""

import pytest

from tests.whole_models import Model


class Models(dict):
    """Name of a family -> its model, made when it is first asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __missing__(self, name):
        self[name] = Model(name, self.folder / name)
        return self[name]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def sd1(models):
    return models["sd1"]


@pytest.fixture
def sd2(models):
    return models["sd2"]


@pytest.fixture
def sdxl(models):
    return models["sdxl"]


@pytest.fixture(scope="session")
def written(models, tmp_path_factory):
    """(family, form) -> the trained model of that family in that form, written once."""
    paths = {}

    def path(name, form):
        if (name, form) not in paths:
            paths[name, form] = tmp_path_factory.mktemp("written") / (
                "m" if form.startswith("diffusers") else f"m.{form}"
            )
            assert models[name].write(paths[name, form], form=form) == []
        return paths[name, form]

    return path
