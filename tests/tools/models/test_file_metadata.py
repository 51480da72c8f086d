"""Metadata shown, changed, undone and stripped; hashes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from core.engine.keeping import mark_file, unmark_file
from core.formats.tensors.header import read_header
from core.generation.model import sources
from core.generation.model.sources import tensors_sha256
from core.networks.adapter_file import load_lora
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.tools.models.header_edit import replace_header, with_metadata, write_copy
from core.tools.models.strip_metadata import private_paths
from tests.refusals import refused
from tests.tools.test_tools import lora, use

PRIVATE = {
    "ss_dataset_dirs": '{"10_fox": {"n_repeats": 10, "img_count": 4}}',
    "ss_tag_frequency": '{"10_fox": {"a fox": 4}}',
    "ss_bucket_info": "{}",
    "ss_sample_prompts": "a fox",
    "ss_learning_rate": "0.0001",
    "ss_network_dim": "4",
    "ss_sd_model_name": "C:\\Users\\Jane Doe\\models\\base.safetensors",
    "ss_vae_name": "/home/jane/vae.pt",
    "modelspec.title": "fox",
}


def tensors_of(path):
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def refusals(**asked):
    with pytest.raises(ProblemsError) as refused:
        use(**asked)
    return refused.value.codes


def with_private(path):
    source = lora(path.with_name("plain.safetensors"))
    write_copy(source, with_metadata(source, read_header(source)[1] | PRIVATE), path, CancelToken())
    return path


def test_metadata_are_changed_in_a_copy_whose_tensors_are_equal_in_every_byte(tmp_path):
    path, image = lora(tmp_path / "fox.safetensors"), tmp_path / "look.png"
    Image.new("RGB", (900, 300), (200, 10, 10)).save(image)
    before = path.read_bytes()
    asked = {"metadata_title": "Fox", "metadata_trigger_phrase": "a fox", "thumbnail": str(image)}
    written, lines = use(
        name="edit_metadata",
        file=str(path),
        set_keys=["note=a=b"],
        remove_keys=["ss_tag*"],
        **asked,
    )
    assert written == tmp_path / "fox_edited.safetensors" and path.read_bytes() == before
    assert tensors_of(written) == tensors_of(path)
    metadata = read_header(written)[1]
    assert metadata["modelspec.title"] == "Fox" and metadata["modelspec.trigger_phrase"] == "a fox"
    assert metadata["note"] == "a=b" and "ss_tag_frequency" not in metadata
    head, _, data = metadata["modelspec.thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (512, 171)
    assert "removed: ss_tag_frequency" in lines and "changed: modelspec.title: Fox" in lines
    with safe_open(written, framework="pt") as file:  # the library reads it
        assert len(list(file.keys())) == 9
    again, _ = use(name="edit_metadata", file=str(path), metadata_title="Fox")
    assert again == tmp_path / "fox_edited_2.safetensors" and written.exists(), "nothing is replaced"
    given = {"file": str(path), "metadata_title": "Fox", "output": str(written)}
    assert refusals(name="edit_metadata", **given) == ["tools.output-exists"]


def test_a_change_of_the_file_itself_is_undone_to_the_last_byte(tmp_path, monkeypatch):
    """The tensors are read once, by the first change: each later check runs when Start is pressed."""
    read = []
    monkeypatch.setattr(
        sources, "tensors_sha256", lambda path, cancel: read.append(path) or tensors_sha256(path, cancel)
    )
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models")
    path = lora(tmp_path / "fox.safetensors")
    before = path.read_bytes()
    given = {"name": "edit_metadata", "file": str(path), "in_place": True}
    use(workspace, **given, metadata_title="one")
    use(workspace, **given, metadata_title="two")
    assert read_header(path)[1]["modelspec.title"] == "two" and tensors_of(path) in before
    use(workspace, name="edit_metadata", file=str(path), undo=True)
    assert read_header(path)[1]["modelspec.title"] == "one"
    use(workspace, name="edit_metadata", file=str(path), undo=True)
    assert path.read_bytes() == before and read == [path]
    assert refusals(workspace=workspace, name="edit_metadata", file=str(path), undo=True) == ["tools.nothing-to-undo"]
    use(workspace, **given, metadata_title="three")
    lora(path, **{"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 8)} | {
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(8, 2)})  # fmt: skip
    assert refusals(workspace=workspace, name="edit_metadata", file=str(path), undo=True) == ["tools.undo-other-file"]


def test_undo_restores_only_the_keys_of_its_change_and_names_those_changed_since(tmp_path):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models")
    path = lora(tmp_path / "fox.safetensors")
    before = read_header(path)[1]
    given = {"workspace": workspace, "name": "edit_metadata", "file": str(path)}
    use(**given, in_place=True, metadata_title="one", metadata_author="jane", remove_keys=[next(iter(before))])
    others = read_header(path)[1] | {"civitai.id": "7", "modelspec.author": "joe"}
    write_copy(path, with_metadata(path, others), path, CancelToken())
    _, lines = use(**given, undo=True)
    assert read_header(path)[1] == before | {"civitai.id": "7", "modelspec.author": "joe"}
    assert lines[1:] == ["not restored, changed since: modelspec.author"]


def test_a_change_is_undone_after_its_file_was_moved_but_not_for_a_copy(tmp_path):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models")
    path, other = lora(tmp_path / "fox.safetensors"), tmp_path / "sub" / "red.safetensors"
    before = path.read_bytes()
    use(workspace, name="edit_metadata", file=str(path), in_place=True, metadata_title="one")
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())
    undo = {"workspace": workspace, "name": "edit_metadata", "file": str(other), "undo": True}
    assert refusals(**undo) == ["tools.nothing-to-undo"]
    path.unlink()
    use(**undo)
    assert other.read_bytes() == before and refusals(**undo) == ["tools.nothing-to-undo"]


def test_undo_leaves_the_mark_of_a_kept_file_which_has_its_own(tmp_path):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models")
    path, cancel = lora(tmp_path / "fox.safetensors"), CancelToken()
    before = read_header(path)[1]
    given = {"workspace": workspace, "name": "edit_metadata", "file": str(path)}
    mark_file(path, "fox", "the best", None, workspace, cancel)
    assert refusals(**given, undo=True) == ["tools.nothing-to-undo"]
    unmark_file(path, workspace, cancel)
    use(**given, in_place=True, metadata_title="one")
    mark_file(path, "fox", "the best", None, workspace, cancel)
    use(**given, in_place=True, metadata_author="jane")
    use(**given, undo=True)
    use(**given, undo=True)
    assert read_header(path)[1] == before | {"atelier_kept": "fox", "atelier_choice": "the best"}
    unmark_file(path, workspace, cancel)
    assert read_header(path)[1] == before


@pytest.mark.parametrize("hashed", [True, False], ids=["", "stored by an earlier version"])
def test_old_metadata_are_not_restored_into_other_weights_of_the_same_shapes(tmp_path, hashed):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models")
    path, other = lora(tmp_path / "fox.safetensors"), lora(tmp_path / "owl.safetensors")
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    use(workspace, name="edit_metadata", file=str(path), in_place=True, metadata_title="fox")
    path.write_bytes(content)
    undo = {"workspace": workspace, "name": "edit_metadata", "file": str(path), "undo": True}
    if hashed:
        assert refusals(**undo) == ["tools.undo-other-file"] and path.read_bytes() == content
    else:
        (stored,) = workspace.private.glob("headers/*/*.header")
        stored.rename(stored.with_name("0001.header"))
        use(**undo)
        assert tensors_of(path) in content


def test_a_change_that_was_cancelled_leaves_nothing_to_undo(tmp_path):
    workspace, path, cancel = (
        Workspace(tmp_path / "outputs", tmp_path / "models"),
        lora(tmp_path / "fox.safetensors"),
        CancelToken(),
    )
    before = path.read_bytes()
    cancel.cancel()
    with pytest.raises(Cancelled):
        replace_header(path, with_metadata(path, {"modelspec.title": "new"}), workspace, cancel)
    assert path.read_bytes() == before
    assert refusals(workspace=workspace, name="edit_metadata", file=str(path), undo=True) == ["tools.nothing-to-undo"]


def test_without_a_change_metadata_are_shown_with_their_json_opened(tmp_path):
    path = lora(tmp_path / "fox.safetensors")
    facts, lines = use(name="edit_metadata", file=str(path))
    assert facts["metadata"]["ss_tag_frequency"] == {"fox": {"a": 2}}
    assert '      "a": 2' in lines and "modelspec.title: glyph" in lines


def test_all_that_is_wrong_with_a_change_is_told_at_once(tmp_path):
    path = lora(tmp_path / "fox.safetensors")
    asked = {"set_keys": ["no value"], "remove_keys": ["gone*"], "thumbnail": str(path)}
    codes = refusals(name="edit_metadata", file=str(path), **asked)
    assert sorted(codes) == ["tools.bad-key-line", "tools.no-such-key", "tools.no-thumbnail"]
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    assert refusals(name="edit_metadata", file=str(tmp_path / "a.pt")) == ["tools.not-safetensors"]
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n")
    for tool in ("edit_metadata", "strip_metadata", "check_weights"):
        assert refusals(name=tool, file=str(tmp_path / "empty.safetensors")) == ["model.empty-file"]
    for tool in ("edit_metadata", "strip_metadata"):
        assert refusals(name=tool, file=str(tmp_path / "a.png")) == ["model.unknown-file"]
    for tool in ("edit_metadata", "strip_metadata", "check_weights"):
        assert refusals(name=tool, file=str(tmp_path)) == ["tools.is-a-folder"]
    assert refusals(name="edit_metadata", file=str(path), metadata_title="x", output=str(path)) == [
        "tools.output-is-input"
    ]


@pytest.mark.parametrize(
    ("remove", "kept"),
    [("training", {"ss_learning_rate", "modelspec.title", "ss_network_dim", "sshs_model_hash"}),
     ("minimum", {"ss_network_dim", "ss_base_model_version", "sshs_model_hash"}), ("all", {"format"})],
)  # fmt: skip
def test_stripping_leaves_what_was_chosen_and_names_private_paths(tmp_path, remove, kept):
    path = with_private(tmp_path / "fox.safetensors")
    _facts, lines = use(name="strip_metadata", file=str(path), remove=remove)
    metadata = read_header(tmp_path / "fox_shared.safetensors")[1]
    assert kept <= set(metadata) and not {"ss_dataset_dirs", "ss_tag_frequency", "ss_sample_prompts"} & set(metadata)
    assert ("ss_learning_rate" in metadata) == (remove == "training")
    assert "jane" not in json.dumps(metadata).lower()
    assert tensors_of(tmp_path / "fox_shared.safetensors") == tensors_of(path)
    said = "\n".join(lines)
    assert "private path in ss_vae_name: /home/jane/vae.pt" in said and "Jane Doe" in said
    if remove == "training":
        assert metadata["ss_sd_model_name"] == "base.safetensors" and metadata["ss_vae_name"] == "vae.pt"
    assert torch.equal(
        *(
            load_lora(each).tensors["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"]
            for each in (path, tmp_path / "fox_shared.safetensors")
        )
    )


def test_private_paths_are_told_from_addresses_and_names():
    for text, found in (
        ("C:\\Users\\J D\\x.png", ["C:\\Users\\J D\\x.png"]),
        ('{"dir": "C:\\\\img\\\\10_fox"}', ["C:\\\\img\\\\10_fox"]),
        ("\\\\nas\\share\\a", ["\\\\nas\\share\\a"]),
        ("['/content/drive/MyDrive/img', '/root/b']", ["/content/drive/MyDrive/img", "/root/b"]),
        ("https://example.org/home/x", []),
        ("stabilityai/stable-diffusion-xl, a fox and/or a dog", []),
    ):
        assert private_paths(text) == found


def test_hashes_are_those_of_other_programs_for_a_file_and_a_folder(tmp_path):
    path = lora(tmp_path / "fox.safetensors")
    with open(path, "ab") as handle:
        handle.write(b"\0" * (1 << 20) + b"x" * 70_000)
    content = path.read_bytes()
    facts, lines = use(name="hashes", file=str(path))
    (each,) = facts["files"]
    assert each["sha256"] == hashlib.sha256(content).hexdigest()
    assert each["legacy"] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert each["auto_v3"] == hashlib.sha256(tensors_of(path)).hexdigest()[:12] and each["changed"]
    assert facts["shown"][0]["rows"][0][1] == each["sha256"][:10]
    assert any("NOT the weights" in line for line in lines)
    lora(tmp_path / "b.safetensors")
    facts, _ = use(name="hashes", file=str(tmp_path))
    assert [row["changed"] for row in facts["files"]] == [False, True]
    (tmp_path / "none").mkdir()
    assert refusals(name="hashes", file=str(tmp_path / "none")) == ["tools.no-model-files"]


def test_a_damaged_file_of_a_folder_is_left_out_of_the_hashes_by_name_and_alone_it_is_an_error(tmp_path):
    whole, cut = lora(tmp_path / "b.safetensors"), tmp_path / "a.safetensors"
    cut.write_bytes(whole.read_bytes()[:-9])
    facts, lines = use(name="hashes", file=str(tmp_path))
    assert [Path(each["path"]) for each in facts["files"]] == [whole]
    (damaged,) = facts["damaged"]
    assert damaged["code"] == "model.truncated" and Path(damaged["where"]) == cut
    assert any(str(cut) in line and damaged["what"] in line for line in facts["brief"] if line in lines)
    with refused("model.truncated", cut.name) as caught:
        use(name="hashes", file=str(cut))
    assert caught.value.problems[0].where == "hashes.file"
