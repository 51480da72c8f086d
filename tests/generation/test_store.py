"""One model in memory: kept while nothing changed, dropped when anything did."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from core.generation.store import ModelStore
from core.record.cancel import Cancelled
from core.record.problems import ProblemsError
from core.settings.model import ModelSettings


class Loaded:
    """Stands for a model's components."""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"one")
    return tmp_path / "model"


def counting_store() -> tuple[ModelStore, list[tuple]]:
    loads: list[tuple] = []

    def load(settings, path, vae_path, dtype, vae_dtype, device):
        loads.append((path.name, vae_path, dtype, device))
        return Loaded()

    return ModelStore(load), loads


def lease(store, path, vae=None, dtype="fp32", device="cpu", settings=None):
    with store.lease(settings or ModelSettings(), path, vae, dtype, "fp32", device) as components:
        return components


def test_the_same_model_is_loaded_once(model):
    store, loads = counting_store()
    first = lease(store, model)
    assert lease(store, model, settings=ModelSettings(clip_skip=2)) is first  # clip skip changes no module
    assert len(loads) == 1 and store.holds == str(model)


def test_each_part_of_the_key_loads_anew(model, tmp_path):
    store, loads = counting_store()
    vae = tmp_path / "vae.safetensors"
    vae.write_bytes(b"v")
    lease(store, model)
    lease(store, model, vae=vae)
    lease(store, model, dtype="bf16")
    lease(store, model, dtype="bf16", device="cuda")
    lease(store, model, dtype="bf16", device="cuda", settings=ModelSettings(prediction="v"))
    (model / "weights.safetensors").write_bytes(b"other")
    lease(store, model, dtype="bf16", device="cuda", settings=ModelSettings(prediction="v"))
    assert len(loads) == 6


def test_a_lease_that_ended_in_an_exception_is_dropped_and_a_cancelled_or_refused_one_kept(model):
    store, loads = counting_store()
    with pytest.raises(RuntimeError), store.lease(ModelSettings(), model, None, "fp32", "fp32", "cpu"):
        raise RuntimeError("out of memory")
    assert store.holds is None
    with pytest.raises(Cancelled), store.lease(ModelSettings(), model, None, "fp32", "fp32", "cpu"):
        raise Cancelled
    assert store.holds == str(model)
    with pytest.raises(ProblemsError), store.lease(ModelSettings(), model, None, "fp32", "fp32", "cpu"):
        raise ProblemsError.one("refused", "", "")
    assert store.holds == str(model)
    assert len(loads) == 2


def test_release_frees_the_modules(model):
    store, _ = counting_store()
    seen = weakref.ref(lease(store, model))
    gc.collect()
    assert seen() is not None
    store.release()
    gc.collect()
    assert seen() is None and store.holds is None


def test_the_old_model_is_gone_before_the_next_is_loaded(model):
    alive: list[int] = []
    refs: list[weakref.ref] = []

    def load(settings, path, vae_path, dtype, vae_dtype, device):
        gc.collect()
        alive.append(sum(ref() is not None for ref in refs))
        made = Loaded()
        refs.append(weakref.ref(made))
        return made

    store = ModelStore(load)
    lease(store, model)
    lease(store, model, dtype="bf16")
    assert alive == [0, 0]


def test_a_failed_load_leaves_the_store_empty_and_usable(model):
    answers = [RuntimeError("damaged"), Loaded()]

    def load(*_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    store = ModelStore(load)
    with pytest.raises(RuntimeError, match="damaged"):
        lease(store, model)
    assert store.holds is None
    assert isinstance(lease(store, model), Loaded)


def test_a_second_lease_waits_for_the_first(model):
    store, _ = counting_store()
    order: list[str] = []

    def second():
        lease(store, model)
        order.append("second")

    with store.lease(ModelSettings(), model, None, "fp32", "fp32", "cpu"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
