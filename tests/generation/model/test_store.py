"""Models in memory: kept while nothing changed and they fit, dropped when anything did."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from core.generation.model.store import ModelStore
from core.record.cancel import Cancelled
from core.record.problems import ProblemsError

KB = 1024


def model(kilobytes=1):
    return nn.Linear(kilobytes * KB // 4, 1, bias=False)


class Kept(ModelStore):
    """A store that notes what it loads."""

    def __init__(self, budget=None):
        super().__init__(budget)
        self.loads = []

    def take(self, key, slot="base", kilobytes=1, known=True):
        with self.lease(slot, key, lambda: self._made(key, kilobytes), name=key, size=known * kilobytes * KB) as found:
            return found

    def _made(self, key, kilobytes):
        self.loads.append(key)
        return model(kilobytes)

    @property
    def names(self):
        return [held.name for held in self.loaded()]


def test_the_same_model_is_loaded_once_and_another_key_or_slot_is_another_model():
    store = Kept()
    first = store.take("a")
    assert store.take("a") is first and store.names == ["a"]
    store.take("b")
    assert store.take("a", slot="refiner") is not first
    assert store.loads == ["a", "b", "a"] and store.names == ["a", "b", "a"]


def test_the_least_recently_used_leave_when_the_budget_is_full():
    store = Kept(budget=3 * KB)
    for key in ("a", "b", "a", "c"):
        store.take(key)
    assert store.names == ["b", "a", "c"] and sum(held.bytes for held in store.loaded()) == 3 * KB
    store.take("d", kilobytes=2)
    assert store.names == ["c", "d"]
    store.take("huge", kilobytes=9)
    assert store.names == ["huge"], "one that is larger than the budget is kept, alone"


def test_of_unknown_size_it_replaces_what_its_slot_holds():
    store = Kept()
    store.take("a", known=False)
    store.take("vae", slot="VAE", known=False)
    store.take("b", known=False)
    assert store.names == ["vae", "b"]


def test_what_is_in_use_does_not_leave():
    store = Kept(budget=KB)
    with store.lease("base", "a", model, name="a", size=KB):
        store.take("vae", slot="VAE")
        assert store.names == ["a", "vae"]
        assert store.release()
        assert store.names == ["a"]


def test_a_lease_that_ended_in_an_exception_is_dropped_and_a_cancelled_or_refused_one_kept():
    store = Kept()
    with pytest.raises(RuntimeError), store.lease("base", "a", model):
        raise RuntimeError("a shape is wrong")
    assert not store.loaded()
    with pytest.raises(Cancelled), store.lease("base", "a", model):
        raise Cancelled
    with pytest.raises(ProblemsError), store.lease("base", "a", model):
        raise ProblemsError.one("refused", "", "")
    assert len(store.loaded()) == 1


@pytest.mark.slow
def test_release_frees_the_modules():
    store = Kept()
    seen = weakref.ref(store.take("a"))
    gc.collect()
    assert seen() is not None
    store.release()
    gc.collect()
    assert seen() is None and not store.loaded()


def test_what_has_to_leave_is_gone_before_the_next_is_loaded():
    store, alive, refs = ModelStore(2 * KB), [], []

    def load():
        gc.collect()
        alive.append(sum(ref() is not None for ref in refs))
        made = model(2)
        refs.append(weakref.ref(made))
        return made

    for key in ("a", "b"):
        with store.lease("base", key, load, size=2 * KB):
            pass
    assert alive == [0, 0]


def test_out_of_memory_while_loading_lets_the_others_go_and_tries_again():
    store, answers = Kept(), [torch.OutOfMemoryError("out of memory"), model()]
    store.take("a")

    def load():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with store.lease("base", "b", load, name="b", size=KB) as found:
        assert isinstance(found, nn.Linear) and store.names == ["b"]


def test_a_failed_load_leaves_the_store_empty_and_usable():
    store = Kept()

    def fail():
        raise RuntimeError("damaged")

    with pytest.raises(RuntimeError, match="damaged"), store.lease("base", "a", fail):
        pass
    assert not store.loaded()
    assert isinstance(store.take("a"), nn.Linear)


def test_another_thread_waits_for_a_lease_and_one_that_must_not_wait_releases_nothing():
    store, order = Kept(), []

    def second():
        order.append(store.release(wait=False))
        store.take("b")
        order.append("second")

    with store.lease("base", "a", model):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(60)
    assert order == [False, "first", "second"] and len(store.loaded()) == 2
