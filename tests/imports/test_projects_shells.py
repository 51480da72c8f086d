"""Scripts of shells and notebooks: what only a shell would know is asked for, and no option is lost."""

import json

import pytest

from core.imports.projects.importers import import_project


def of_key(found, key):
    return next(entry for entry in found.report if entry.key == key)


CONDITIONS = {
    "a.sh": """DIM=8
more=(--sdpa)
if [[ $v2 == 1 ]]; then
  DIM=64; more+=("--v2")
else more+=("--clip_skip 2"); fi
case $1 in a) SEED=1;; esac
ALPHA=4 ; both=("--full_bf16 --seed=7")
python train_network.py --network_dim=$DIM --network_alpha=$ALPHA --seed=$SEED ${both[@]} "${more[@]}"
""",
    "a.ps1": """$dim = 8
$more = [System.Collections.ArrayList]::new()
if ($v2 -eq 1)
{ $dim = 64; [void]$more.Add("--v2") } else { $seed = 1
}
$alpha = 4 ; $both = @("--full_bf16", "--seed=7")
python train_network.py --network_dim=$dim --network_alpha=$alpha --seed=$seed $both $more
""",
    "a.bat": """setlocal EnableDelayedExpansion
set DIM=8
if "%1"=="a" (
  set DIM=64
  set MORE=--v2
) else (
  set SEED=1
)
set /a ALPHA=2*2
set /p OTHER=Other options?
python train_network.py --network_dim=%DIM% --network_alpha=!ALPHA! --seed=%SEED% --full_bf16 --seed=7 %MORE% %OTHER%
""",
    "short.sh": """DIM=8
more="--sdpa"
[[ $v2 == 1 ]] && DIM=64
[ -n "$1" ] && more="--v2" || more="--clip_skip 2"
ALPHA=4; both="--full_bf16 --seed=7"
python train_network.py --network_dim=$DIM --network_alpha=$ALPHA ${both} ${more}
""",
    "short.bat": """set DIM=8
if "%1"=="a" set DIM=64
set MORE=
if not "%2"=="" (set "MORE=--v2")
set ALPHA=4
python train_network.py --network_dim=%DIM% --network_alpha=%ALPHA% --seed=7 %MORE%
""",
    "notebook.txt": """dim = 8
alpha = 4
seed = 7
if v2:
  dim = 64

more = "--sdpa"
if xl: more = "--v2"
!python train_network.py --network_dim={dim} --network_alpha={alpha} --seed=$seed $more
""",
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_a_script_sets_on_a_condition_is_asked_for(name):
    found = import_project(CONDITIONS[name], name=name, choice="train_network")
    assert (found.job.network.alpha, found.job.schedule.seed, found.job.model.family) == (4, 7, "sd1")
    assert of_key(found, "network_dim").kind == "unavailable"
    unset = [problem for problem in found.problems if problem.code == "import.unset-variable"]
    assert len(unset) >= 2 and "ore" in unset[-1].what + unset[-2].what


def test_a_notebook_is_read_as_its_cells():
    code = ["dim = 8 #@param\n", "!python train_network.py --network_dim={dim} \\\n", "  --output_name C:\\x --seed=5"]
    cells = [{"cell_type": "markdown", "source": ["# Train"]}, {"cell_type": "code", "source": code, "outputs": []}]
    found = import_project(json.dumps({"cells": [*cells, {"source": "print(1)"}], "nbformat": 4}), name="a.ipynb")
    assert (found.job.network.rank, found.job.schedule.seed) == (8, 5)


@pytest.mark.parametrize("name", ["a.sh", "a.ps1", "a.bat"])
def test_placeholders_of_guides_are_asked_for(name):
    found = import_project(
        "train_network.py --network_dim <rank of it> --output_name <name> --seed 5 >log.txt", name=name
    )
    assert {of_key(found, key).kind for key in ("network_dim", "output_name")} == {"unavailable"}
    assert found.job.schedule.seed == 5 and len(found.problems) == 3
