"""A listener to work that reports: what it heard, and a stop after some images."""

from core.record.cancel import CancelToken
from core.record.context import Reports


class Heard(Reports):
    def __init__(self, stop_after=0):
        self.stages, self.said, self.images, self.steps, self.previews = [], [], [], [], []
        self._token, self._stop_after = CancelToken(), stop_after

    def stage(self, text, done=0, total=0, step=0, steps=0, *, of_bytes=False):
        self.stages.append((text, done, total))
        self.steps.append((step, steps))

    def say(self, text, level="info", fix="", code=""):
        self.said.append(text)

    def generated(self, path, seed):
        self.images.append((path, seed))
        if len(self.images) == self._stop_after:
            self._token.cancel()

    def preview(self, jpeg):
        self.previews.append(jpeg)

    @property
    def cancel(self):
        return self._token
