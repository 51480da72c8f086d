"""Tiny whole models, made once for all tests of formats."""

import pytest

from tests.whole_models import FAMILIES, Model


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return {name: Model(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


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
