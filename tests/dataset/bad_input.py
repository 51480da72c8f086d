"""For the tables of bad input: a folder of someone, what they are told about it, and that nothing in it is changed."""

import hashlib
import os
import zlib

import numpy as np
import pytest
from PIL import Image

from core.dataset.preflight import preflight
from core.record.workspace import Workspace
from core.settings.job import TrainJob
from core.settings.rules import training_problems

DATASET = {"resolution": 128, "bucket_reso_steps": 32}


class Table:
    """Generators by name: each builds bad input, yields settings, gets what is seen of it, checks that."""

    def __init__(self):
        self.rows = {}

    def row(self, number):
        """Puts a generator into the table."""

        def keep(build):
            self.rows[f"{number} {build.__name__}"] = build
            return build

        return keep

    def run(self, name, tmp_path):
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        steps = self.rows[name](theirs)
        seen = Seen(theirs, tmp_path / "outputs", next(steps))
        with pytest.raises(StopIteration):  # the row has come to its end
            steps.send(seen)


class Seen:
    """What a person sees of the folder `theirs`, with the settings that a row yields; nothing in it may change."""

    def __init__(self, theirs, outputs, groups):
        self.theirs, self.workspace, self.groups = theirs, Workspace(outputs=outputs), dict(groups)
        self.look()

    def look(self, **groups):
        """Read the folder (again), with these settings instead of the row's own."""
        dataset = {"folder": str(self.theirs), **DATASET, **groups.pop("dataset", self.groups.get("dataset", {}))}
        self.job = TrainJob.model_validate({**self.groups, **groups, "dataset": dataset})
        before = tree(self.theirs)
        self.report = preflight(self.job, self.workspace, decode=True, count_tokens=len)
        assert tree(self.theirs) == before
        self.problems = (*training_problems(self.job), *self.report.problems)
        return self.report

    def told(self, code, where, about="", blocks=False):
        """The one problem of this code and place that names `about`."""
        return told(self.problems, code, where, about, blocks)

    def row(self, name):
        (found,) = [each for each in self.report.rows if each.key[1] == name]
        return found

    def placed(self, name):
        return next(each for each in self.report.placed if each.image.relative == name)

    def trains(self, *names):
        """Exactly these images train."""
        assert sorted(each.key[1] for each in self.report.rows if each.trains) == sorted(names)


def told(problems, code, where, about="", blocks=False):
    level = "error" if blocks else "advice"
    found = [
        each
        for each in problems
        if each.code == code and where in each.where and about in f"{each.what}; {each.fix}" and each.level == level
    ]
    listed = "\n".join(f"{each.code}: {each}" for each in problems)
    assert len(found) == 1, f"{code} / {where} / {about} ({level}) is not among:\n{listed}"
    return found[0]


def tree(folder):
    """{path below the folder: hash of its bytes}."""
    return {
        os.fsencode(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def image(path, width=160, height=96, caption="a fox", **options):
    """An image of noise, so that it is neither blurred nor small as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, "utf-8")
    return path
