"""What a test may say of threads, whatever other threads of the process begin and end meanwhile."""

import threading
from contextlib import contextmanager

import pytest


@contextmanager
def no_thread_left():
    """The threads that this one starts inside, of which there must be some, have ended when it leaves."""
    here, started, start = threading.current_thread(), [], threading.Thread.start

    def noted(thread):
        if threading.current_thread() is here:
            started.append(thread)
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", noted)
        yield
    assert started and not [thread.name for thread in started if thread.is_alive()]
