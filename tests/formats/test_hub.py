"""Models by name: found here, or fetched from a hub that in these tests runs on this machine."""

import hashlib
from types import SimpleNamespace

import httpx
import pytest

from core.formats.hub import fetch, references
from core.formats.hub.references import (
    HubId,
    RemoteFile,
    choose_files,
    download,
    download_files,
    file_names,
    parse_hub_id,
    resolve,
)
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from tests.local_server import Answers, as_hub, model_bytes, serving
from tests.offline import no_network
from tests.refusals import refused

WEIGHTS = model_bytes(bytes(range(256)) * 9000)  # 2.3 MB: more than one chunk
FOLDER = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "README.md": b"words",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.bin": b"pickle",
    "unet/diffusion_pytorch_model.safetensors": model_bytes(b"32 bits"),
    "unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.non_ema.safetensors": b"no",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": model_bytes(b"vae"),
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": model_bytes(b"text"),
    "text_encoder/flax_model.msgpack": b"flax",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"",
    "scheduler/scheduler_config.json": b"{}",
    "safety_checker/model.safetensors": b"not wanted",
    "v1-5-pruned.ckpt": b"\x80\x02all of it",
}
NEEDED = {
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
}


class FakeHub(Answers):
    """Two calls of the hub: what a model holds, and the bytes of a file (with ranges)."""

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.path.startswith("/api/models/"):
            if server.status != 200:
                self.send_response(server.status)
                if server.status == 403:
                    self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            siblings = []
            for name, data in server.files.items():
                entry = {"rfilename": name, "size": len(data), "blobId": "0"}
                if len(data) > 1000:
                    entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
                siblings.append(entry)
            answer = {"id": "owner/model", "sha": "0", "siblings": siblings}
            self.send_json(answer)
            return
        data = server.files[self.path.partition("/resolve/main/")[2]]
        served = server.damaged or data
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        reach = f"bytes {start}-{len(served) - 1}/{len(served)}" if start else None
        cut = 0 if server.cut_after and start else server.cut_after  # once cut, the connection brings nothing more
        self._send(served[start:], 206 if start else 200, cut=cut, reach=reach)

    def _send(self, data, status=200, cut=None, reach=None):
        self.send_response(status)
        if reach:
            self.send_header("Content-Range", reach)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if cut is None else data[:cut])


@pytest.fixture
def fake_hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(fetch, "FIRST_WAIT", 0.0)
    with serving(FakeHub, files=dict(FOLDER), asked=[], status=200, cut_after=None, damaged=None) as server:
        as_hub(monkeypatch, server)
        yield server


OWNER = HubId("owner", "model")


def get(models, hub_id=OWNER, **more):
    return download(hub_id, models, **more)


# ---- resolving ----


def test_a_path_is_taken_as_it_is(tmp_path):
    file = tmp_path / "a b ü.safetensors"
    file.write_bytes(b"x")
    assert resolve(str(file), tmp_path / "models") == file
    assert resolve(f"  {file} ", tmp_path / "models") == file
    assert resolve("models/starter", tmp_path) == PROJECT / "models" / "starter", "relative to the project"


def test_a_name_under_models_is_found_with_and_without_its_ending(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "fox.safetensors").write_bytes(b"x")
    for name in ("sub/fox", "sub/fox.safetensors", "models/sub/fox", "sub\\fox"):
        assert resolve(name, tmp_path) == tmp_path / "sub" / "fox.safetensors"


def test_what_was_trained_is_found_by_its_portable_name_wherever_the_outputs_are(tmp_path):
    model = tmp_path / "elsewhere" / "runs" / "a" / "dog.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"x")
    name = "outputs/runs/a/dog.safetensors"
    assert resolve(name, tmp_path / "models", tmp_path / "elsewhere") == model
    for wrong in ("outputs/../secret/dog.safetensors", "outputs/runs/a/cat.safetensors"):
        with refused("model.not-found"):  # nor is it taken for a hub id
            resolve(wrong, tmp_path / "models", tmp_path / "elsewhere")


def test_a_hub_id_that_is_here_is_used_and_one_that_is_not_is_returned(tmp_path):
    assert resolve("owner/model", tmp_path) == HubId("owner", "model")
    assert str(resolve("owner/model/sub/file.safetensors", tmp_path)) == "owner/model/sub/file.safetensors"
    (tmp_path / "owner--model").mkdir()
    (tmp_path / "owner--model" / "model_index.json").write_text("{}")
    assert resolve("owner/model", tmp_path) == tmp_path / "owner--model"


def test_a_folder_that_wraps_one_file_stands_for_it(tmp_path):
    (tmp_path / "owner--model").mkdir()
    (tmp_path / "owner--model" / "v1.safetensors").write_bytes(b"x")
    assert resolve("owner/model", tmp_path) == tmp_path / "owner--model" / "v1.safetensors"
    assert resolve("owner/model/v1.safetensors", tmp_path) == tmp_path / "owner--model" / "v1.safetensors"
    assert resolve("owner/model/v2.safetensors", tmp_path) == HubId("owner", "model", "v2.safetensors")


@pytest.mark.parametrize(
    "name", ["", "  ", "nothing-here", "models/none", "sub/none.safetensors", "../x/y", "/no/such", "a\0b"]
)
def test_what_is_neither_here_nor_a_hub_id_is_a_problem(tmp_path, name):
    with pytest.raises(ProblemsError) as caught:
        resolve(name, tmp_path)
    assert caught.value.problems[0].fix and caught.value.codes[0].startswith("model.")


@pytest.mark.parametrize("text", ["models/x", "a/b.ckpt", "a/../b", "justone", "-a/b", "https://host/a/b", "C:\\a\\b"])
def test_paths_are_not_taken_for_hub_ids(text):
    assert parse_hub_id(text) is None


# ---- choosing ----


def remote(*names):
    return [RemoteFile(name, 1) for name in names]


def names_of(files):
    return {file.name for file in files}


def test_only_one_form_of_the_weights_is_fetched():
    assert names_of(choose_files(OWNER, remote(*FOLDER))) == NEEDED


def test_a_vae_alone_and_a_single_file_are_fetched():
    vae = remote("config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "README.md")
    assert names_of(choose_files(OWNER, vae)) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert names_of(choose_files(OWNER, remote("README.md", "v1.safetensors", "v1.ckpt"))) == {"v1.safetensors"}
    one = HubId("owner", "model", "b.safetensors")
    assert names_of(choose_files(one, remote("a.safetensors", "b.safetensors"))) == {"b.safetensors"}


def test_shards_are_fetched_with_their_index():
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert names_of(choose_files(OWNER, remote("model_index.json", index, *shards))) == {
        "model_index.json",
        index,
        *shards,
    }


def test_several_files_or_none_are_a_problem_that_names_them():
    with refused("model.file-not-named", "a.safetensors, b.safetensors") as caught:
        choose_files(OWNER, remote("a.safetensors", "b.safetensors"))
    assert "owner/model/a.safetensors" in caught.value.problems[0].fix
    with refused("model.file-not-named", "none"):
        choose_files(OWNER, remote("README.md"))
    with refused("model.file-not-named", "old.ckpt"):
        choose_files(OWNER, remote("README.md", "old.ckpt"))
    with refused("model.file-not-named", "c.safetensors"):
        choose_files(HubId("owner", "model", "c.safetensors"), remote("a.safetensors"))


# ---- fetching ----


def test_a_model_is_fetched_whole_with_progress(tmp_path, fake_hub):
    steps = []
    path = get(tmp_path, on_progress=lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "owner--model"
    here = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert here == {name: FOLDER[name] for name in NEEDED}
    total = sum(len(FOLDER[name]) for name in NEEDED)
    assert steps[0] == (0, total) and steps[-1] == (total, total) and len(steps) > 5
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert [file.name for file in tmp_path.iterdir()] == ["owner--model"], "nothing temporary stays"
    assert resolve("owner/model", tmp_path) == path


def test_one_file_is_fetched_into_its_models_folder(tmp_path, fake_hub):
    path = get(tmp_path, HubId("owner", "model", "v1-5-pruned.ckpt"))
    assert path == tmp_path / "owner--model" / "v1-5-pruned.ckpt" and path.read_bytes() == b"\x80\x02all of it"
    second = get(tmp_path, HubId("owner", "model", "vae/config.json"))
    assert second.is_file() and path.is_file(), "a second file joins the first"


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path, fake_hub):
    fake_hub.cut_after = 1_500_000
    with refused("model.download-failed"):
        get(tmp_path)
    assert not (tmp_path / "owner--model").exists(), "half a model is no model"
    unfinished = next(tmp_path.rglob("*.part"))
    kept = unfinished.stat().st_size
    assert 0 < kept <= 1_500_000
    fake_hub.cut_after = None
    fake_hub.asked.clear()
    path = get(tmp_path)
    assert (path / "unet" / "diffusion_pytorch_model.fp16.safetensors").read_bytes() == WEIGHTS
    assert f"bytes={kept}-" in [wanted for _, wanted, _ in fake_hub.asked]


def test_cancelling_keeps_what_is_there_for_the_next_time(tmp_path, fake_hub):
    token = CancelToken()

    def progress(done, total):
        if done > 1_000_000:
            token.cancel()

    with pytest.raises(Cancelled):
        get(tmp_path, on_progress=progress, cancel=token)
    assert not (tmp_path / "owner--model").exists()
    assert next(tmp_path.rglob("*.part")).stat().st_size > 1_000_000


def test_a_file_that_arrives_damaged_is_thrown_away(tmp_path, fake_hub):
    fake_hub.damaged = WEIGHTS[:-1] + b"?"
    file = HubId("owner", "model", "unet/diffusion_pytorch_model.fp16.safetensors")
    with refused("model.download-failed", "damaged"):
        get(tmp_path, file)
    assert not list(tmp_path.rglob("*.part"))


def test_the_token_of_the_environment_is_sent(tmp_path, fake_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    get(tmp_path, HubId("owner", "model", "v1-5-pruned.ckpt"))
    assert {sent for _, _, sent in fake_hub.asked} == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    "name", ["unet/../../../outside.json", "/outside.json", "unet\\..\\..\\outside.json", "C:outside.json"]
)
def test_a_file_name_that_leads_out_of_the_folder_is_refused(tmp_path, fake_hub, name):
    models = tmp_path / "a" / "b"
    fake_hub.files[name] = b"{}"
    with refused("model.unsafe-name"):
        get(models, HubId("owner", "model", name))
    assert not list(tmp_path.rglob("outside.json"))


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path, fake_hub, monkeypatch):
    monkeypatch.setattr("core.record.machine.free_disk", lambda _: 1000)
    with refused("disk.space"):
        get(tmp_path)
    assert len(fake_hub.asked) == 1
    with refused("disk.space"):
        download_files(OWNER, ["model_index.json"], tmp_path, lambda *_: None)
    assert len(fake_hub.asked) == 2


# ---- when it fails ----


def one_line(caught):
    (problem,) = caught.value.problems
    assert problem.code == "model.download-failed" and "\n" not in problem.what + problem.fix
    return str(problem)


def test_without_a_network_one_line_says_what_failed_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with no_network(allow_attempts=True), pytest.raises(ProblemsError) as caught:
        download(OWNER, tmp_path)
    line = one_line(caught)
    assert "'owner/model'" in line and "does not answer" in line
    assert str(tmp_path / "owner--model") in line and "by hand" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "private"), (404, "private"), (403, "accept the terms"), (500, "answered 500")],
)
def test_the_hubs_refusals_are_told_apart(tmp_path, fake_hub, status, words):
    fake_hub.status = status
    with pytest.raises(ProblemsError) as caught:
        get(tmp_path)
    assert words in one_line(caught)


def test_a_folder_that_cannot_be_written_is_said_to_be(tmp_path, fake_hub):
    (tmp_path / "models").write_text("a file, not a folder")
    with refused("file.unwritable"):
        get(tmp_path / "models")


# ---- at the edges, without a server


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a" * 96 + "/b", True),
        ("a" * 97 + "/b", False),
        ("a/" + "b" * 96, True),
        ("a/" + "b" * 97, False),
        ("a/b.c-d_e", True),
    ]
    + [
        ("_a/b", False),
        ("a/.b", False),
        ("a /b", False),
        ("a/b/", False),
        ("outputs/x", False),
        ("a/b.safetensors", False),
    ]
    + [("a/b/c.safetensors", True), ("a/b/c/../d", False), ("a/b.BIN", False)],
)
def test_an_id_of_the_hub_has_two_names_of_96_characters(text, read):
    found = parse_hub_id(text)
    assert (found is not None) is read and (not read or str(found) == text)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left"), "file.unwritable", "No space left"),
        (OSError(122, "Disk quota exceeded"), "file.unwritable", "quota"),
        (PermissionError(13, "Permission denied"), "file.unwritable", "denied"),
        (OSError(5, "Input error", "a.bin"), "file.unwritable", "Input error"),
        (OSError(27, "x"), "model.download-failed", "does not answer"),
        (OSError(121, "x"), "model.download-failed", "does not answer"),
        (ConnectionRefusedError(111, "refused"), "model.download-failed", "does not answer"),
        (ValueError("x"), "model.download-failed", "does not answer"),
        (401, "model.download-failed", "private"),
        (404, "model.download-failed", "private"),
        (400, "model.download-failed", "answered 400"),
        (402, "model.download-failed", "answered 402"),
        (405, "model.download-failed", "answered 405"),
    ],
)
def test_a_failed_listing_is_the_fault_of_the_disk_the_network_or_the_hub(tmp_path, monkeypatch, error, code, words):
    if isinstance(error, int):
        status, error = error, RuntimeError()
        error.response = SimpleNamespace(status_code=status)

    def listing(*_):
        raise error

    monkeypatch.setattr(references, "_listing", listing)
    with refused(code, words):
        file_names(OWNER, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks5://127.0.0.1:9"), ("NO_PROXY", "fe80::/10"), ("SSL_CERT_FILE", "/missing/certificates.pem")],
)
def test_an_environment_that_allows_no_connection_is_not_blamed_on_the_hub(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(references, "_listing", lambda *_: httpx.Client())
    with refused("model.download-failed", "the environment of this program allows no connection"):
        file_names(OWNER, tmp_path)


PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


def test_of_each_part_the_small_files_of_its_own_folder_are_needed():
    wanted = ["model_index.json", *(f"{part}/{name}" for part in PARTS for name in ("config.json", "a.txt"))]
    others = ["image_encoder/config.json", "unet/old/config.json", "unet/a.bin.index.json", "unet/a.md", "a.json"]
    assert [file.name for file in choose_files(OWNER, remote(*others, *wanted))] == wanted


WEIGHTS_FIRST = [
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.bin",
    "diffusion_pytorch_model.bin",
]


@pytest.mark.parametrize("best", range(len(WEIGHTS_FIRST)))
def test_half_precision_and_safetensors_are_preferred(best):
    there = WEIGHTS_FIRST[best:][::-1] + ["diffusion_pytorch_model.non_ema.bin", "model.fp32.safetensors"]
    found = names_of(choose_files(OWNER, remote("config.json", *there)))
    assert found == {"config.json", WEIGHTS_FIRST[best]}


def test_shards_in_half_precision_come_with_the_index_that_diffusers_writes():
    shards = [f"model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    there = [
        "config.json",
        "model.safetensors.index.fp16.json",
        "model.fp16.safetensors.index.json",
        *shards,
        "model.safetensors",
    ]
    chosen = names_of(choose_files(OWNER, remote(*there)))
    assert {*shards, "model.fp16.safetensors.index.json"} <= chosen and "model.safetensors" not in chosen


@pytest.mark.parametrize("sign", '\\:*?"<>|\0')
def test_signs_that_a_system_forbids_are_in_no_name_of_a_file(sign):
    with refused("model.unsafe-name"):
        references._safe_name(OWNER, f"unet/a{sign}b.json")
    assert str(references._safe_name(OWNER, "unet/a..b c.json")) == "unet/a..b c.json"


def test_five_of_the_files_of_a_repository_are_named():
    with refused("model.file-not-named", "4.safetensors") as caught:
        choose_files(OWNER, remote(*(f"{n}.safetensors" for n in range(6))))
    assert "5.safetensors" not in str(caught.value) and "0.safetensors" in caught.value.problems[0].fix


def test_only_a_folder_of_one_file_without_a_config_stands_for_the_file(tmp_path):
    folder = tmp_path / "owner--model"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"x")
    (folder / "note.txt").write_bytes(b"x")
    assert resolve("owner/model", tmp_path) == folder / "a.safetensors"
    (folder / "config.json").write_bytes(b"{}")
    assert resolve("owner/model", tmp_path) == folder
    (folder / "config.json").unlink()
    (folder / "b.CKPT").write_bytes(b"x")
    assert resolve("owner/model", tmp_path) == folder
