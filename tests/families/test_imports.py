"""Imports of large libraries from several threads."""

import gc
import os
import subprocess
import sys
import threading

import pytest

from core.families.imports import quick_imports
from core.record.workspace import PROJECT

CODE_OF_THE_HUB = """
import importlib.util, sys
import core
assert importlib.util.find_spec("kernels") is None
from core.families.imports import quick_imports
with quick_imports():
    import bitsandbytes.backends.mps.ops as mps
    from transformers.utils import is_kernels_available
assert not is_kernels_available()
mps._kernel_load_failed = False
assert mps._get_kernel() is None and mps._kernel_load_failed
from diffusers.utils import import_utils
assert not import_utils._is_package_available("kernels")[0]
"""


@pytest.mark.slow
def test_no_library_fetches_code_from_the_hub_through_the_package_kernels(tmp_path):
    pytest.importorskip("bitsandbytes")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise SystemExit('kernels was imported')\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CODE_OF_THE_HUB], cwd=PROJECT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_thread_at_a_time_imports_and_garbage_is_collected_again():
    inside, most, lock = 0, 0, threading.Lock()

    def visit() -> None:
        nonlocal inside, most
        with quick_imports():
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.02)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and gc.isenabled()


ASIDE = """
import gc, weakref
from core.families import family
from core.families.part_shapes import make_empty

gc.collect()
before = gc.get_freeze_count()
model = make_empty("text_encoder", family("sd1").layout.config("text_encoder"))
model.itself = [model]  # what trains hangs together in circles
seen = weakref.ref(model)
aside = gc.get_freeze_count() - before
del model
gc.collect()
print(aside > 50_000, seen() is None)
"""


@pytest.mark.slow
def test_libraries_are_no_longer_searched_for_garbage_and_models_are():
    """A search among the libraries' half a million objects takes a third of a second, in which no request is answered."""
    told = subprocess.run([sys.executable, "-c", ASIDE], cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert told.stdout.split() == ["True", "True"], told.stderr


LEAN = """
import sys
sys.modules["peft"] = None  # comes with the tests alone, and imports it too
from core.families import family
from core.families.part_shapes import make_empty

for name in ("unet", "vae", "text_encoder"):
    make_empty(name, family("sd1").layout.config(name))
print("bitsandbytes" in sys.modules, "torch._inductor.compile_fx" in sys.modules)
from diffusers.utils import is_bitsandbytes_available
print(is_bitsandbytes_available())
"""


@pytest.mark.slow
def test_models_are_made_without_bitsandbytes_and_the_compiler_that_it_pulls_in():
    """They take three seconds, of each start of a training."""
    pytest.importorskip("bitsandbytes")
    told = subprocess.run([sys.executable, "-c", LEAN], cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert told.stdout.split() == ["False", "False", "True"], told.stderr
