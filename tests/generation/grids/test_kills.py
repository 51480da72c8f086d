"""A grid whose process is killed again and again: no cell is lost, none is damaged, and none that exists is made again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.generation.grids.folder import GridFolder
from core.record.workspace import PROJECT, Workspace

KILLS = 20
EARLIER = {"x_axis": "steps", "x_values": "1,2,3", "y_axis": "seed", "y_values": "1-2"}
LARGER = {"x_axis": "steps", "x_values": "1,2,3,4", "y_axis": "seed", "y_values": "1-3"}
# Forks a process for each number of its arguments, which is killed at its nth file operation: a moment that is the same on every
# machine. Each writes a line for an image that it saves, and one at its end with the number of its file
# operations; after it come the hashes of the cells.
PROCESS = """
import hashlib, json, os, signal, sys
from pathlib import Path
import torch
from core.generation.grids import making
from core.generation.model.store import make_store
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GridJob
outputs, name, log, *moments = sys.argv[1:]
saves, seen = making.GridWork._save, 0

def line(*facts):
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (json.dumps(facts) + "\\n").encode())
    os.close(file)

def child(number, moment):
    def save(self, image, path, *more):
        line(number, path.name, path.exists())
        saves(self, image, path, *more)
    def hook(event, args):
        global seen
        if event not in ("open", "os.rename", "os.mkdir", "os.link", "os.listdir", "os.remove"):
            return  # such as os.kill itself
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
    making.GridWork._save = save
    sys.addaudithook(hook)
    torch.set_num_threads(1)
    making.run_grid(build(GridJob, {"grid": {"folder": name}}), Workspace(Path(outputs), PROJECT / "models"), store=make_store())
    line(number, seen)

for number, moment in enumerate(map(int, moments)):
    if not (pid := os.fork()):
        code = 1
        try:
            child(number, moment)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"the process ended with {status}")
    cells = Path(outputs, "grids", name, "cells").glob("x*.png")
    line({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in cells})
"""


def run(workspace: Workspace, folder: GridFolder, log: Path, *moments: int) -> list[list[Any]]:
    """Resume a grid in a process for each moment, at which it is killed; 0 lets it end. Returns the lines of these processes."""
    log.unlink(missing_ok=True)
    arguments = [str(workspace.outputs), folder.name, str(log), *map(str, moments)]
    subprocess.run([sys.executable, "-c", PROCESS, *arguments], cwd=PROJECT, check=True, timeout=600)
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def hashes(folder: GridFolder) -> dict[str, str]:
    """{name: hash} of the cells that exist, each a whole image."""
    for place in folder.generated():
        with Image.open(folder.cell(place)) as image:
            image.load()
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in map(folder.cell, folder.generated())}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_grid_killed_at_twenty_moments_loses_no_cell_and_makes_none_again(tmp_path):
    from core.generation.grids.making import begin
    from tests.generation.grids.test_making import job_of

    seeds = {"variation_seed": 5}  # else drawn for each grid, and written into its images
    workspace, log = Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models"), tmp_path / "log"
    earlier = begin(job_of(generate=seeds, **EARLIER), workspace, "a run")
    run(workspace, earlier, log, 0)
    whole = begin(job_of(generate=seeds, **LARGER), workspace)  # of no run: takes nothing over
    (operations,) = [line[1] for line in run(workspace, whole, log, 0) if len(line) == 2]
    killed, draw = begin(job_of(generate=seeds, **LARGER), workspace, "a run"), random.Random(20)
    lines = run(workspace, killed, log, *(draw.randint(1, operations) for _ in range(KILLS)), 0)
    before, ended = dict[str, str](), [line[0] for line in lines if len(line) == 2]
    for (cells,) in (line for line in lines if len(line) == 1):
        assert before.items() <= cells.items(), "what existed is what it was"
        before = cells
    assert not any(line[2] for line in lines if len(line) == 3), "no cell that exists is made again"
    expected = hashes(whole) | hashes(earlier)  # linked cells are the earlier grid's
    assert hashes(killed) == expected == before and len(expected) == 12 and killed.content().state == "done"
    assert not {line[1] for line in lines if len(line) == 3} & hashes(earlier).keys(), "nor one of an earlier grid"
    assert ended[-1] == KILLS and len(ended) <= KILLS // 2, "most moments were within the work"
