"""colab.ipynb and the installation into a Python that has a torch of its own."""

import ast
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.setup.choose import MachineFacts, choose_build, pins_from
from core.setup.in_place import plan

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "colab.ipynb").read_text(encoding="utf-8"))
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
CODE = {cell["id"]: "".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"}


def python_of(cell: str) -> str:
    """The cell without its shell (!) and notebook (%) lines, which become `pass` so that blocks stay whole."""
    return re.sub(r"(?m)^(\s*)[!%].*$", r"\1pass", cell)


def shell_of(cell: str) -> list[str]:
    return re.findall(r"(?m)^\s*!(.*)$", cell)


def test_it_is_a_notebook_of_format_4_5():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert set(NOTEBOOK) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(ids) == len(set(ids)) and all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in ids)
    for cell in NOTEBOOK["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            assert cell["outputs"] == [] and cell["execution_count"] is None, (
                "a notebook is committed without its results"
            )
        assert set(cell) == keys
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and not cell["source"][-1].endswith("\n")


@pytest.mark.parametrize("name", CODE)
def test_every_code_cell_compiles(name):
    compile(python_of(CODE[name]), name, "exec")


def test_models_outputs_and_presets_are_kept_in_drive():
    assert 'drive.mount("/content/drive")' in CODE["drive"]
    (start,) = shell_of(CODE["start"])
    assert '--models "{home}/models" --outputs "{home}/outputs" --presets "{home}/presets"' in start
    assert 'for name in ("models", "outputs", "presets")' in CODE["drive"]


def test_it_starts_with_a_share_link_and_a_new_password_that_it_prints(capsys, monkeypatch):
    monkeypatch.setenv("ATELIER_AUTH", "")
    (start,) = shell_of(CODE["start"])
    assert "python webui.py --share" in start and "--no-browser" in start
    assert "password" not in start  # the list of processes shows it
    colab_with(monkeypatch, lambda code, **_: "https://7860-a.colab.dev/")
    passwords = set()
    for _ in range(3):
        names: dict = {"Path": Path}
        exec(compile(python_of(CODE["start"]), "start", "exec"), names)
        said = capsys.readouterr().out
        assert names["password"] in said and "open (in this browser only) https://7860-a.colab.dev/" in said
        assert names["options"] == " --host 7860-a.colab.dev" and start.endswith(" {options}")
        assert os.environ["ATELIER_AUTH"] == f"atelier:{names['password']}"
        assert len(names["password"]) >= 16 and not set(names["password"]) & set(" \"'$`\\:")
        passwords.add(names["password"])
    assert len(passwords) == 3
    calls = [node for node in ast.walk(ast.parse(python_of(CODE["start"]))) if isinstance(node, ast.Call)]
    assert any(ast.unparse(call.func) == "secrets.token_urlsafe" for call in calls)


def colab_with(monkeypatch, eval_js):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(output=SimpleNamespace(eval_js=eval_js)))


@pytest.mark.parametrize("there", [True, False])
def test_a_further_folder_of_the_drive_is_allowed_if_it_is_there(tmp_path, monkeypatch, there):
    def unreachable(code, **_):
        raise TimeoutError

    colab_with(monkeypatch, unreachable)
    monkeypatch.setenv("ATELIER_AUTH", "")
    code = (
        python_of(CODE["start"]).replace("/content/drive/MyDrive", str(tmp_path)).replace('= ""  #@', '= "my fox"  #@')
    )
    names: dict = {"Path": Path}
    if there:
        (tmp_path / "my fox").mkdir()
        exec(compile(code, "start", "exec"), names)
        assert names["options"] == f"--allow '{tmp_path / 'my fox'}'"
    else:
        with pytest.raises(SystemExit, match="There is no folder"):
            exec(compile(code, "start", "exec"), names)


def run_get(tmp_path, monkeypatch, **fields):
    """The cell that gets Atelier, with Colab's folders moved to tmp_path and its form filled in."""
    code = CODE["get"].replace("/content/", f"{tmp_path}/")
    for name, value in fields.items():
        code, found = re.subn(rf'(?m)^{name} = ".*?"', f'{name} = "{value}"', code)
        assert found == 1
    home = tmp_path / "drive"
    home.mkdir(exist_ok=True)
    exec(compile(code, "get", "exec"), {"Path": Path, "home": home})
    return tmp_path / "atelier"


def make_zip(path, inside=""):
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{inside}webui.py", "")
        archive.writestr(f"{inside}models/starter/model_index.json", "{}")


@pytest.mark.parametrize("inside", ["", "atelier-main/"])
def test_it_unpacks_a_zip_from_drive_with_or_without_a_folder_inside(tmp_path, monkeypatch, capsys, inside):
    (tmp_path / "drive").mkdir()
    make_zip(tmp_path / "drive" / "atelier.zip", inside)
    program = run_get(tmp_path, monkeypatch)
    assert (program / "webui.py").exists() and f"Atelier is in {program}" in capsys.readouterr().out
    assert (tmp_path / "drive" / "models" / "starter" / "model_index.json").exists()


def test_without_address_and_zip_it_says_what_to_fill_in(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="Git address above, or put Atelier's zip at"):
        run_get(tmp_path, monkeypatch)


def test_a_zip_of_something_else_is_refused(tmp_path, monkeypatch):
    import zipfile

    (tmp_path / "drive").mkdir()
    with zipfile.ZipFile(tmp_path / "drive" / "atelier.zip", "w") as archive:
        archive.writestr("readme.txt", "")
    with pytest.raises(SystemExit, match=r"has no webui\.py"):
        run_get(tmp_path, monkeypatch)


def test_half_a_zip_is_refused_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "drive").mkdir()
    (tmp_path / "drive" / "atelier.zip").write_bytes(b"PK")
    with pytest.raises(SystemExit, match="upload it again"):
        run_get(tmp_path, monkeypatch)


PINS = pins_from(REQUIREMENTS)
T4 = choose_build(MachineFacts("Linux", "x86_64", glibc="2.35", driver="550.54.15", compute=("7.5",)), PINS)


def test_a_torch_of_the_pinned_version_is_kept_with_the_xformers_of_its_index():
    steps, lines = plan(f"{PINS.torch}+cu126", T4, REQUIREMENTS)
    assert steps == [["--index-url", T4.index_url, T4.xformers]]
    assert f"torch=={PINS.torch}" in lines.splitlines()


def test_a_torch_of_the_pinned_version_for_another_cuda_is_kept_without_xformers():
    steps, lines = plan(f"{PINS.torch}+cu128", T4, REQUIREMENTS)
    assert steps == []
    assert f"torch=={PINS.torch}+cu128" in lines.splitlines() and "xformers" not in lines.split("# ")[0]
    assert not [line for line in lines.splitlines() if line.startswith("xformers")]


@pytest.mark.parametrize("present", ["2.9.0+cu126", "2.13.1+cu126", None])
def test_another_torch_is_replaced_from_pytorchs_index_together_with_xformers(present):
    steps, lines = plan(present, T4, REQUIREMENTS)
    assert steps == [["--index-url", "https://download.pytorch.org/whl/cu126", T4.torch, T4.xformers]]
    assert lines.splitlines()[:2] == [T4.torch, T4.xformers]
