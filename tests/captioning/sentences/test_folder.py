"""Models that are missing, incomplete, damaged, of another kind or hostile are refused before a start, by problem code; and
models by name are downloaded whole."""

from __future__ import annotations

import json
import os
import pickle
import struct

import pytest
from safetensors.torch import load_file, save_file

from core.captioning.sentences import folder as model_folder
from core.captioning.sentences import loading
from core.captioning.sentences.folder import weight_files
from core.generation.model.library import Scan
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from tests.local_server import Answers, as_hub, serving
from tests.offline import no_network

SHORT = {"max_new_tokens": 6}


def refused(caption, kind, check=True, **settings):
    with pytest.raises(ProblemsError) as caught:
        caption(kind, check=check, **SHORT | settings)
    return caught.value.codes


def change(path, **values):
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | values))


@pytest.mark.parametrize("kind", ["blip", "blip2", "git", "florence", "llava", "qwen", "smol"])
def test_a_whole_model_passes(caption, kind):
    assert caption(kind, check=True, **SHORT).startswith("4 images ")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_a_missing_file_is_named(caption, own_model, name):
    model = own_model("qwen")
    (model / name).unlink()
    with pytest.raises(ProblemsError, match=name) as caught:
        caption("qwen", model=model, check=True)
    assert caught.value.codes == ["captioner.incomplete"] and "copy" in caught.value.problems[0].fix


def test_a_chat_model_needs_its_template_wherever_it_stands(caption, own_model):
    model = own_model("llava")
    text = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    assert refused(caption, "llava", model=model) == ["captioner.incomplete"]
    change(model / "tokenizer_config.json", chat_template=text)
    assert len(caption("llava", model=model, **SHORT).texts) == 4


def test_a_model_of_another_kind_is_sent_to_its_captioner(caption, models, own_model):
    with pytest.raises(ProblemsError, match="use the captioner GIT") as caught:
        caption("blip", model=models("git"), check=True)
    assert caught.value.codes == ["captioner.other-kind"]
    with pytest.raises(ProblemsError, match="use the captioner Florence-2"):
        caption("llava", model=models("florence"), check=True)
    model = own_model("blip")
    change(model / "config.json", model_type="moondream")
    assert refused(caption, "blip", model=model) == ["captioner.other-kind"]


def test_pickles_are_refused_whatever_they_are_called(caption, own_model):
    model = own_model("blip")
    data = pickle.dumps({"a": 1})
    (model / "model.safetensors").write_bytes(data)
    assert refused(caption, "blip", model=model) == ["captioner.pickle"]
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert refused(caption, "blip", model=model) == ["captioner.pickle"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_a_model_with_code_of_its_own_is_refused(caption, own_model, name):
    model = own_model("florence")
    change(model / name, auto_map={"AutoModelForCausalLM": "modeling_florence2.Florence2"})
    (model / "modeling_florence2.py").write_text("raise SystemExit('run')")
    assert refused(caption, "florence", model=model) == ["captioner.remote-code"]
    assert refused(caption, "florence", model=model, check=False) == ["captioner.remote-code"]


def test_adapters_and_foreign_packings_are_refused(caption, own_model):
    model = own_model("blip")
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    assert refused(caption, "blip", model=model) == ["captioner.adapter"]
    change(model / "config.json", quantization_config={"quant_method": "gptq"})
    assert refused(caption, "blip", model=model) == ["captioner.packed"]


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"num_hidden_layers": 10**6}, "captioner.bad-config"),
        ({"text_config": {"num_hidden_layers": 100_000}}, "captioner.bad-config"),
        ({"vision_config": {"hidden_size": 2**50}}, "captioner.bad-config"),
        ({"depths": [3, 10**9]}, "captioner.bad-config"),
    ],
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_built(caption, own_model, values, code):
    model = own_model("blip")
    change(model / "config.json", **values)
    assert refused(caption, "blip", model=model) == [code]


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", "file.not-json"), ("[]", "file.not-json-object"), ("[" * 200, "file.not-json"), ("", "file.not-json")],
)
def test_damaged_configs_are_named(caption, own_model, text, code):
    model = own_model("blip")
    for name in ("config.json", "preprocessor_config.json"):
        (model / name).write_text(text)
    assert refused(caption, "blip", model=model) == [code, code]


def test_a_pipe_in_the_folder_blocks_nothing(caption, own_model):
    model = own_model("blip")
    os.mkfifo(model / "generation_config.json") if not (model / "generation_config.json").exists() else None
    (model / "special.json").unlink(missing_ok=True)
    os.mkfifo(model / "special.json")
    assert refused(caption, "blip", model=model) == ["file.is-pipe"]


def test_weights_that_are_cut_short_damaged_or_a_page_are_refused(caption, own_model):
    model = own_model("blip")
    file = model / "model.safetensors"
    whole = file.read_bytes()
    for data, code in (
        (whole[:-100], "model.cut-short"),
        (b"<!doctype html>", "model.page-file"),
        (struct.pack("<Q", 4) + b"{{{{", "file.not-json"),
    ):
        file.write_bytes(data)
        assert len(refused(caption, "blip", model=model)) == 1, code


def test_a_config_of_a_larger_model_than_the_weights_is_refused_without_building_it(caption, own_model):
    model = own_model("blip")
    found = json.loads((model / "config.json").read_text())
    found["text_config"] |= {"hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 900_000}
    (model / "config.json").write_text(json.dumps(found))
    assert refused(caption, "blip", model=model, check=False) == ["captioner.not-loaded"]


def test_weights_that_lack_a_tensor_are_refused_not_filled_by_chance(caption, own_model):
    model = own_model("git")
    tensors = load_file(model / "model.safetensors")
    lost = next(name for name in tensors if "attention" in name and name.endswith("weight"))
    del tensors[lost]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ProblemsError, match="lacks 1 weights") as caught:
        caption("git", model=model, **SHORT)
    assert caught.value.codes == ["captioner.not-loaded"]


def test_weights_that_no_caption_needs_may_be_missing():
    names = ("model.vision_tower.vision_model.head.probe", "text_decoder.bert.pooler.dense.weight")
    assert all(map(loading.UNUSED.search, names))
    assert not any(map(loading.UNUSED.search, ("lm_head.weight", "vision_model.encoder.layers.0.mlp.fc1.bias")))


def test_shards_are_all_needed_and_lie_in_the_folder(caption, own_model):
    model = own_model("blip")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = list(load_file(model / "model-00001-of-00002.safetensors"))
    index = model / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")})
    )
    assert len(caption("blip", model=model, **SHORT).texts) == 4
    index.write_text(json.dumps({"metadata": {}, "weight_map": {names[0]: "model-00002-of-00002.safetensors"}}))
    assert refused(caption, "blip", model=model) == ["captioner.incomplete"]
    for bad in ({}, {"a": "../x.safetensors"}, {"a": 3}, []):
        index.write_text(json.dumps({"metadata": {}, "weight_map": bad}))
        assert refused(caption, "blip", model=model) == ["captioner.bad-index"]
    index.unlink()
    assert weight_files(model) == [model / "model.safetensors"]


def test_everything_that_is_wrong_is_said_at_once(caption, folder, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    wrong = {"precision": "4bit", "openers": ["("], "min_new_tokens": 9, "prompt": "{nothing}"}
    assert set(refused(caption, "llava", model="nothing here", **wrong)) == {
        "captioner.no-bitsandbytes",
        "caption.bad-pattern",
        "captioner.min-above-max",
        "captioner.unknown-name",
        "captioner.not-found",
    }
    assert refused(caption, "git", remove_words=["["]) == ["caption.bad-pattern"]
    assert refused(caption, "git", model="  ") == ["captioner.no-model"]


# ---- by name


def test_a_model_is_found_by_its_name_below_models_captioners(caption, folder, models):
    place = folder.parent / "models" / "captioners"
    place.mkdir(parents=True)
    (place / "mine").symlink_to(models("git"))
    (place / "owner--name").symlink_to(models("git"))
    for name in ("mine", "owner/name", "models/captioners/mine"):
        assert caption("git", model=name if "models" not in name else place / "mine", check=True, **SHORT)


def test_lists_of_other_models_leave_the_folder_out(tmp_path, models):
    place = tmp_path / "models" / "captioners" / "mine"
    place.mkdir(parents=True)
    for name in ("model.safetensors", "model_index.json"):
        (place / name).write_bytes((models("git") / "model.safetensors").read_bytes())
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models")
    assert [*Scan(workspace).checkpoints(), *Scan(workspace).loras(), *Scan(workspace).vaes()] == []
    (tmp_path / "models" / "other").mkdir()
    (place / "model.safetensors").rename(tmp_path / "models" / "other" / "model.safetensors")
    assert len([*Scan(workspace).checkpoints(), *Scan(workspace).loras(), *Scan(workspace).vaes()]) <= 1


class Hub(Answers):
    """Lists and serves the files of a folder as `owner/name`."""

    def do_GET(self):
        self._answer(True)

    def do_HEAD(self):
        self._answer(False)

    def _answer(self, body):
        if self.path.startswith("/api/models/owner/name"):
            files = [{"rfilename": path.name, "size": path.stat().st_size} for path in self.server.folder.iterdir()]
            return self.send_json({"id": "owner/name", "siblings": files})
        self.server.asked.append(self.path.rpartition("/")[2])
        data = (self.server.folder / self.path.rpartition("/")[2]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def test_a_model_by_name_is_downloaded_whole_and_without_what_is_not_needed(caption, folder, own_model, monkeypatch):
    served = own_model("llava")
    for name in ("pytorch_model.bin", "modeling_own.py", "README.md", "tf_model.h5", "model.fp16.safetensors"):
        (served / name).write_bytes(b"x")
    asked = {"model": "owner/name", **SHORT}
    assert refused(caption, "llava", **asked) == ["captioner.no-files"]
    place = folder.parent / "models" / "captioners" / "owner--name"
    with serving(Hub, folder=served, asked=[]) as server:
        as_hub(monkeypatch, server)
        assert caption("llava", check=True, download=True, **asked).startswith("4 images ")
        assert len(caption("llava", download=True, **asked).texts) == 4
        extra = {"pytorch_model.bin", "modeling_own.py", "README.md", "tf_model.h5", "model.fp16.safetensors"}
        assert {path.name for path in place.iterdir()} == {path.name for path in served.iterdir()} - extra
        assert server.asked[-1] == "config.json"
        server.asked.clear()
        assert len(caption("llava", download=True, **asked).texts) == 4 and server.asked == []
        (place / "tokenizer.json").unlink()
        with pytest.raises(ProblemsError) as caught:
            caption("llava", check=True, **asked)
        assert caught.value.problems[0].remedy == "vlm.download"
        caption("llava", download=True, **asked)
        assert set(server.asked) == {"tokenizer.json"}


def test_a_repository_without_safetensors_is_refused_before_anything_is_fetched(
    caption, folder, own_model, monkeypatch
):
    served = own_model("blip")
    (served / "model.safetensors").rename(served / "pytorch_model.bin")
    with serving(Hub, folder=served, asked=[]) as server:
        as_hub(monkeypatch, server)
        assert refused(caption, "blip", check=False, model="owner/name", download=True) == ["captioner.pickle"]
        assert server.asked == [] and not (folder.parent / "models" / "captioners").exists()


def test_without_a_network_one_sentence_says_where_the_files_belong(caption, folder):
    with no_network(allow_attempts=True), pytest.raises(ProblemsError) as caught:
        caption("blip", model="owner/name", download=True)
    (problem,) = caught.value.problems
    assert problem.code == "model.download-failed" and "owner--name" in problem.fix


def test_loading_asks_no_network(caption):
    with no_network():
        assert len(caption("smol", **SHORT).texts) == 4


def test_config_comes_last_so_that_an_interrupted_download_is_not_taken_for_whole():
    listed = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "vocab.json",
        "merges.txt",
    ]
    listed += [
        "pytorch_model.bin.index.json",
        "onnx/model.onnx",
        "a.gguf",
        "chat_template.jinja",
        "model-00002-of-00002.safetensors",
    ]
    found = model_folder.files_to_download(listed)
    assert found[-1] == "config.json" and not {"pytorch_model.bin.index.json", "onnx/model.onnx", "a.gguf"} & set(found)
    assert len(found) == 7
