"""Which files and states stay, what they say, and where they also go."""

import base64
import json
import threading
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from core.dataset.preflight import preflight
from core.formats.hub.upload import Uploads, path_in_repo
from core.record.kept import keep
from core.record.run_folder import state_step, states_in
from core.record.space import RESERVE
from core.settings.check import build
from core.settings.flags import merge
from core.settings.hub import HubSettings
from core.settings.job import TrainJob
from core.settings.saving import SavingSettings
from core.training.checks.before_start import problems_before_start
from core.training.memory.disk import checkpoint_counts, disk_plan, state_count
from core.training.saving.checkpoints import Checkpoints, Intermediate, bytes_of, expired_checkpoints, planned_saves
from core.training.saving.facts import thumbnail_url, user_metadata
from core.training.saving.states import States, expired_states
from tests.local_server import Answers, as_hub, serving
from tests.refusals import refused


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def step_files(*steps):
    return [Intermediate(Path(f"t-step{step:08d}"), step, None) for step in steps]


def test_step_files_are_kept_by_distance_as_sd_scripts_does():
    """Reference, section 7.2: every 10, 30: at step 50 the file of step 10 goes."""
    settings = SavingSettings(save_every_n_steps=10, save_last_n_steps=30)
    left = []
    for step in range(10, 60, 10):
        left += step_files(step)
        gone = expired_checkpoints(settings, left, step)
        left = [each for each in left if each not in gone]
    assert [each.step for each in left] == [20, 30, 40, 50]
    by_hand = step_files(3, 50)
    assert not expired_checkpoints(settings, by_hand, 50), "only names that the period gives are touched"


def test_epoch_files_are_counted_and_step_files_are_not_among_them():
    epochs = [Intermediate(Path(f"t-{epoch:06d}"), epoch * 7, epoch) for epoch in (2, 4, 6)]
    found = [epochs[0], *step_files(20), *epochs[1:]]
    settings = SavingSettings(save_every_n_epochs=2, save_last_n_epochs=2)
    assert expired_checkpoints(settings, found, 42) == [epochs[0]]
    assert expired_checkpoints(SavingSettings(save_last_n=1), found, 42) == found[:-1]


def test_an_epochs_and_a_steps_file_of_one_moment_count_once():
    found = [
        each for step in (10, 20, 30) for each in (Intermediate(Path(f"t-{step:06d}"), step, step), *step_files(step))
    ]
    assert expired_checkpoints(SavingSettings(save_last_n=2), found, 30) == found[:2]


class Written:
    """A method whose files hold their epoch and step, with a second file next to each."""

    extension = ".safetensors"

    def write(self, path, metadata, precision, *, epoch, step):
        for each in (path, *self.extra_files(path)):
            each.write_text(f"{metadata} {precision} {epoch} {step}")
        return []

    def extra_files(self, path):
        return [path.with_name(f"{path.stem}.more")]


def checkpoints(tmp_path, said):
    """Of a run with epochs of 3 steps and 7 in all, of which two moments stay."""
    epochs = SimpleNamespace(first_step=lambda epoch: epoch * 3)
    plan = SimpleNamespace(total=7, epochs=epochs, epoch_of=lambda step: step // 3)
    folder = SimpleNamespace(checkpoints=tmp_path / "checkpoints", path=tmp_path)
    context = SimpleNamespace(
        folder=folder, journal=SimpleNamespace(put=said.append), warn=None, warn_if_moved=lambda: None
    )
    uploads = SimpleNamespace(send=lambda path, wait: None, finish=lambda: None)
    facts = SimpleNamespace(metadata=lambda step: f"after {step}")
    return Checkpoints(SavingSettings(output_name="t", save_last_n=2), context, plan, Written(), uploads, facts)


def test_one_that_a_person_keeps_and_those_of_later_steps_stay(tmp_path):
    """A run that is resumed from an earlier state finds files of steps that it has not reached."""
    run = checkpoints(tmp_path, [])
    for step in (1, 2, 4, 5, 6):
        run.write(run.step_name(step), step)
    keep(tmp_path, tmp_path / "checkpoints" / f"{run.step_name(1)}", "mine")
    run.write(run.step_name(3), 3)
    run.remove_old(3)
    assert [each.step for each in run.intermediate()] == [1, 2, 3, 4, 5, 6]
    run.remove_old(6)
    assert [each.step for each in run.intermediate()] == [1, 5, 6]


def test_a_kill_while_old_ones_are_removed_leaves_no_part_of_them_under_their_names(tmp_path, monkeypatch):
    run = checkpoints(tmp_path, [])
    run.context.folder.states = tmp_path / "state"
    for step in (1, 2, 3):
        (tmp_path / "checkpoints" / run.step_name(step)).mkdir(parents=True)
        (tmp_path / "state" / f"step{step:08d}").mkdir(parents=True)
    job = SimpleNamespace(saving=SavingSettings(), hub=HubSettings())
    states = States(
        SimpleNamespace(job=job, plan=run.plan, state=SimpleNamespace(step=3), context=run.context), run.uploads
    )

    def killed(path, *_):
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    for remove_old in (lambda: run.remove_old(3), states.remove_old):
        with pytest.raises(KeyboardInterrupt):
            remove_old()
    assert [each.step for each in run.intermediate()] == [2, 3]
    assert [state_step(each) for each in states_in(tmp_path / "state")] == [3, 2]


def test_checkpoints_are_named_and_removed_by_epoch_and_step_with_the_files_next_to_them(tmp_path):
    """A file at each end of an epoch and every 2 steps: two moments stay, and the final file, and what is no file of it."""
    said = []
    own, folder = checkpoints(tmp_path, said), SimpleNamespace(checkpoints=tmp_path / "checkpoints")
    names = {2: ["step"], 3: ["epoch"], 4: ["step"], 6: ["epoch", "step"]}
    for step, kinds in names.items():
        for kind in kinds:
            own.write(own.epoch_name(step // 3) if kind == "epoch" else own.step_name(step), step)
        (folder.checkpoints / "t-2.safetensors").touch()  # of somebody else
        own.remove_old(step)
    own.write(own.final.name, 7, final=True)
    own.remove_old(7)
    stems = {"t-step00000004", "t-000002", "t-step00000006", "t"}
    left = {path.name for path in folder.checkpoints.iterdir()}
    assert left == {f"{stem}{end}" for stem in stems for end in (".safetensors", ".more")} | {"t-2.safetensors"}
    assert (folder.checkpoints / "t-000002.safetensors").read_text() == "after 6 fp16 2 6"
    assert [event.step for event in said] == [2, 2, 3, 3, 4, 4, 6, 6, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, [40, 50]),
        ({"save_last_n_states": 3}, [30, 40, 50]),
        ({"save_last_n_steps_state": 30}, [20, 30, 40, 50]),
        ({"save_last_n_epochs_state": 1}, [50]),
        ({"save_last_n_epochs_state": 1, "save_every_n_epochs": 2}, [40, 50]),
        ({"save_last_n_epochs_state": 2, "save_every_n_epochs": 2}, [20, 30, 40, 50]),
        ({"save_last_n_epochs_state": 1, "save_n_epoch_ratio": 2}, [40, 50]),  # every second of five
        ({"save_last_n_epochs_state": 2, "save_last_n_steps_state": 5}, [40, 50]),
    ],
)
def test_states_are_kept_by_number_or_by_distance(settings, left):
    """Epochs of 10 steps, at the end of the fifth."""
    epochs = SimpleNamespace(first_step=lambda epoch: epoch * 10)
    plan = SimpleNamespace(total=50, epochs=epochs, epoch_of=lambda step: step // 10)
    sealed = [Path(f"step{step:08d}") for step in (10, 20, 30, 40, 50)]
    gone = expired_states(SavingSettings(**settings), plan, 50, sealed)
    assert [state_step(path) for path in sealed if path not in gone] == left


def most_at_once(saving, plan):
    """The most checkpoints and training states of a run, saved and removed one after another."""
    files, states, most = [], [], (0, 0)
    for step, kinds in [*planned_saves(saving, plan, plan.total).items(), (plan.total, ("final",))]:
        files += [Intermediate(Path(f"{step} {kind}"), step, plan.epoch_of(step)) for kind in kinds]
        if "step" in kinds:
            files[-1] = step_files(step)[0]
        if saving.save_state or (step == plan.total and saving.save_state_on_train_end):
            states.append(Path(f"step{step:08d}"))
        most = (max(most[0], len(files)), max(most[1], len(states)))
        expired = expired_checkpoints(saving, files, step) + expired_states(saving, plan, step, states)
        files, states = ([each for each in kept if each not in expired] for kept in (files, states))
    return most


def test_the_disk_forecast_counts_the_files_that_a_run_has_at_once():
    for number in range(400):
        draw = Random(number)
        values = {draw.choice(("save_every_n_epochs", "save_every_n_steps", "save_n_epoch_ratio")): draw.randint(1, 6)}
        last = draw.choice(("save_last_n", "save_last_n_epochs", "save_last_n_steps", ""))
        if last and (last != "save_last_n_steps" or "save_every_n_steps" in values):
            values[last] = draw.randint(1, 15)
        states = {"save_last_n_states": draw.randint(1, 5), "save_state": draw.random() < 0.7}
        values |= {"save_every_minutes": None, "save_state_on_train_end": draw.random() < 0.7, **states}
        saving, steps, total = SavingSettings(**values), draw.randint(1, 12), draw.randint(1, 60)
        epochs = SimpleNamespace(first_step=lambda epoch, n=steps: epoch * n, steps_in=lambda epoch, n=steps: n)
        plan = SimpleNamespace(total=total, epochs=epochs, epoch_of=lambda step, n=steps: step // n)
        saved, kept = checkpoint_counts(saving, plan)
        assert (kept + 1, state_count(saving, plan, saved)) == most_at_once(saving, plan), (values, total, steps)
        timed = saving.model_copy(update={"save_every_minutes": 10.0})
        assert state_count(timed, plan, saved) == saving.save_last_n_states + 1


FULL = {"method": {"kind": "fine_tune", "ema": True}}


@pytest.mark.slow(but=("lora",))
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"network": {"rank": 32}}, id="lora"),
        pytest.param({"network": {"kind": "loha", "rank": 32}, "saving": {"save_precision": "bf16"}}, id="loha"),
        pytest.param({"network": {"rank": 32}, "optimizer": {"optimizer_type": "Prodigy"}}, id="prodigy"),
        pytest.param(FULL | {"optimizer": {"optimizer_type": "AdamW8bit"}}, id="full"),
        pytest.param(FULL | {"saving": {"save_model_as": "diffusers"}}, id="folder"),
        pytest.param({"method": {"kind": "controlnet"}}, id="controlnet"),
    ],
)
def test_the_disk_forecast_is_within_ten_percent_and_a_run_that_does_not_fit_says_so(
    train, controls, workspace, tmp_path, monkeypatch, settings
):
    workspace.cache.unlink()
    limits = {"save_every_n_steps": 1, "save_last_n": 1, "save_last_n_states": 3}
    dataset = {"conditioning_data_dir": str(controls)} if "controlnet" in str(settings) else {}
    run = train(**merge(settings, {"saving": limits, "dataset": dataset, "schedule": {"max_train_steps": 3}}))
    report = preflight(run.job, workspace, decode=True)
    needed, _ = disk_plan(run.job, workspace, report)
    free = [RESERVE + needed - 1]
    monkeypatch.setattr("core.record.machine.free_disk", lambda folder: free[0])
    for device, new_run, missing, written, codes in (
        ("cpu", True, 1, 0, ["disk.space"]),
        ("cpu", True, 0, 0, []),
        ("cpu", False, 9, 8, ["disk.space"]),
        ("cpu", False, 9, 9, []),
        (None, True, 1, 0, []),
    ):
        free[0] = RESERVE + needed - missing
        problems = problems_before_start(run.job, workspace, report, device, new_run=new_run, written=written)
        assert [each.code for each in problems if each.code.startswith("disk.")] == codes
    free[0] = RESERVE + needed - 1
    run.start()
    assert "disk.space" in [line.get("code") for line in run.lines("log")]
    used = sum(map(bytes_of, (run.folder.checkpoints, run.folder.states, workspace.cache)))
    assert needed == pytest.approx(used, rel=0.1)
    cached = disk_plan(run.job, workspace, report)[0]
    assert needed - cached == pytest.approx(bytes_of(workspace.cache), rel=0.1), "of which nothing is missing now"


@pytest.mark.parametrize("uploads", [True, False])
def test_a_state_that_is_on_its_way_to_the_hub_is_taken_away_when_it_is_there(tmp_path, uploads):
    for step in (1, 2, 3):
        (tmp_path / f"step{step:08d}").mkdir()
    waited = []

    def there():
        return [state_step(path) for path in sorted(tmp_path.iterdir())]

    run = SimpleNamespace(
        job=SimpleNamespace(saving=SavingSettings(), hub=HubSettings(save_state_to_huggingface=uploads)),
        state=SimpleNamespace(step=3),
        plan=None,
        context=SimpleNamespace(folder=SimpleNamespace(states=tmp_path)),
    )
    States(run, SimpleNamespace(finish=lambda: waited.append(there()))).remove_old()
    assert waited == ([[1, 2, 3]] if uploads else []) and there() == [2, 3]


def test_a_file_is_saved_in_the_type_that_is_set(train):
    word = {"token_string": "zunkel", "init_word": "fox"}
    groups = {"method": {"kind": "embedding"}, "embedding": word, "schedule": {"max_train_steps": 1}}
    training = train(saving={"save_precision": "bf16"}, **groups)
    training.start()
    assert {tensor.dtype for tensor in load_file(training.file()).values() if tensor.dim()} == {torch.bfloat16}


@pytest.mark.slow
def test_pickled_files_hold_the_same_weights_and_load_without_running_anything(train):
    one = {"max_train_steps": 1, "seed": 7}
    plain, pickled = train(schedule=one), train(schedule=one, saving={"save_model_as": "pt"})
    plain.start()
    pickled.start()
    a, b = load_file(plain.file()), torch.load(pickled.file("t.pt"), weights_only=True)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_file_says_what_its_maker_wrote_and_no_metadata_leaves_out_the_rest(train, tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"\x89PNG")
    said = {
        "metadata_title": "Glyphs",
        "metadata_author": "me",
        "metadata_tags": "a, b",
        "metadata_thumbnail": str(image),
    }
    one = {"max_train_steps": 1, "seed": 7}
    training = train(schedule=one, saving=said | {"training_comment": "ü"}, captions={"trigger_word": "sks"})
    training.start()
    found = metadata(training.file())
    assert (found["modelspec.title"], found["modelspec.author"], found["modelspec.tags"]) == ("Glyphs", "me", "a, b")
    assert found["modelspec.trigger_phrase"] == "sks" and found["ss_training_comment"] == "ü"
    assert found["modelspec.thumbnail"] == "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
    assert "modelspec.license" not in found and found["ss_validation_split"] == "0.0"
    little = train(schedule=one, saving=said | {"no_metadata": True})
    little.start()
    names = set(metadata(little.file()))
    assert {name for name in names if name.startswith("ss_")} == {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
    }
    assert "modelspec.title" in names and "sshs_model_hash" in names


def test_each_field_that_a_person_fills_in_is_said_under_its_own_name():
    filled = {
        "metadata_title": "a title",
        "metadata_author": "who",
        "metadata_description": "what",
        "metadata_license": "may",
        "metadata_tags": "a, b",
        "metadata_usage_hint": "how",
        "metadata_trigger_phrase": "sks",
        "metadata_merged_from": "two",
        "metadata_preprocessor": "canny",
    }
    saving = filled | {"metadata_is_negative_embedding": True}
    said = user_metadata(build(TrainJob, {"saving": saving}), [])
    expected = {name.replace("metadata_", "modelspec."): text for name, text in filled.items()}
    assert said == expected | {"modelspec.is_negative_embedding": "true"}


@pytest.mark.slow
def test_a_step_file_says_the_epoch_it_is_in(train):
    training = train(
        schedule={"max_train_epochs": 2, "max_train_steps": None, "seed": 7},
        saving={"save_every_n_steps": 1, "save_every_n_epochs": 1},
    )
    training.start()
    epochs = {
        int(found["ss_steps"]): int(found["ss_epoch"])
        for found in map(metadata, training.folder.checkpoints.glob("*.safetensors"))
    }
    per_epoch = training.lines("planned")[0]["steps_per_epoch"]
    assert epochs == {step: (step - 1) // per_epoch + 1 for step in epochs} and len(epochs) == 2 * per_epoch


def test_a_thumbnail_that_is_missing_too_large_or_no_image_is_refused(tmp_path):
    large, other = tmp_path / "a.png", tmp_path / "a.txt"
    large.write_bytes(b"0" * (2 << 20))
    other.write_text("x")
    codes = {tmp_path / "none.png": "file.missing", large: "file.too-large", other: "metadata.bad-thumbnail"}
    for path, code in codes.items():
        with refused(code):
            thumbnail_url(str(path))


# ---- the hub


class UploadHub(Answers):
    """The calls of an upload: make the repository, ask how, commit."""

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        server.asked.append((self.path, self.headers.get("Authorization")))
        if server.status != 200:
            self.send_json({"error": "You are not allowed"}, server.status)
        elif self.path.endswith("/repos/create"):
            server.made = json.loads(body)
            self.send_json({"url": f"{server.endpoint}/me/run", "name": "me/run"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.send_json(
                {"files": [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in files]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.send_json(
                {"commitUrl": f"{server.endpoint}/me/run/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
            )
        else:
            self.send_json({}, 200)

    def do_GET(self):
        self.send_json({"id": "me/run", "sha": "0" * 40, "siblings": []})

    def _chunks(self):
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        return data


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(UploadHub, files={}, asked=[], status=200, made=None) as server:
        as_hub(monkeypatch, server)
        yield server


def test_files_go_to_their_folder_in_the_repository_under_their_own_names():
    assert path_in_repo(HubSettings(), "a.safetensors") == "a.safetensors"
    assert path_in_repo(HubSettings(huggingface_path_in_repo="/x\\y/"), "a") == "x/y/a"


def test_files_and_folders_are_uploaded_and_the_repository_is_made_private(hub, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"weights")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "s.txt").write_bytes(b"state")
    said = []
    settings = HubSettings(
        huggingface_repo_id="me/run", huggingface_path_in_repo="x", save_state_to_huggingface=True, async_upload=False
    )
    uploads = Uploads(settings, "hf_secret_token", lambda *words: said.append(words))
    uploads.send(tmp_path / "a.txt")
    uploads.send_state(tmp_path / "state")
    uploads.close()
    assert hub.files == {"x/a.txt": b"weights", "x/state/s.txt": b"state"}, said
    assert hub.made["visibility"] == "private" and [level for _, level, _ in said] == ["info", "info"]
    assert {token for _, token in hub.asked} == {"Bearer hf_secret_token"}


def test_the_repository_is_of_the_kind_and_seen_by_whom_was_asked_for(hub, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"weights")
    settings = HubSettings(
        huggingface_repo_id="me/run", huggingface_repo_type="dataset", huggingface_repo_visibility="public"
    )
    uploads = Uploads(settings, None, lambda *words: None)
    uploads.send(tmp_path / "a.txt", wait=True)
    uploads.close()
    assert (hub.made["type"], hub.made["visibility"]) == ("dataset", "public")
    assert any(path.startswith("/api/datasets/me/run/commit/") for path, _ in hub.asked) and hub.files


@pytest.mark.parametrize("beside", [True, False])
def test_a_training_waits_for_an_upload_only_where_it_is_asked_to(tmp_path, monkeypatch, beside):
    first, second = threading.Event(), threading.Event()

    def upload(self, path):
        first.wait(60 if beside else 0.2)  # beside: until the training has gone on
        second.set()

    monkeypatch.setattr(Uploads, "_upload", upload)
    settings = HubSettings(huggingface_repo_id="me/run", async_upload=beside)
    uploads = Uploads(settings, None, lambda *words: None)
    uploads.send(tmp_path)
    assert second.is_set() is not beside
    first.set()
    uploads.close()
    assert second.is_set()


@pytest.mark.slow
def test_states_go_to_the_hub_only_where_they_are_asked_to(train, monkeypatch):
    sent = []
    monkeypatch.setattr(Uploads, "_upload", lambda self, path: sent.append(path.name))
    monkeypatch.setattr(Uploads, "_report_problem", lambda self: None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret_token")
    for states in (False, True):
        train(
            schedule={"max_train_steps": 1, "seed": 7},
            hub={"huggingface_repo_id": "me/run", "save_state_to_huggingface": states},
        ).start()
    assert sent == ["t.safetensors", "t.safetensors", "step00000001"]


def test_an_upload_that_fails_is_said_and_the_next_is_tried(hub, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"weights")
    said = []
    hub.status = 403
    uploads = Uploads(HubSettings(huggingface_repo_id="me/run"), None, lambda *words: said.append(words))
    uploads.send(tmp_path / "a.txt")
    uploads.finish()
    hub.status = 200
    uploads.send(tmp_path / "a.txt", wait=True)
    uploads.close()
    assert [level for _, level, _ in said] == ["warning", "info"], said
    assert "could not be uploaded" in said[0][0] and "HF_TOKEN" in said[0][2]


@pytest.mark.slow
def test_a_training_goes_on_when_its_uploads_fail_and_no_key_is_in_its_folder(train, hub, monkeypatch):
    token = "hf_" + "x" * 30
    monkeypatch.setenv("HF_TOKEN", token)
    hub.status = 500
    monkeypatch.setattr(
        "core.formats.hub.upload.Uploads._connected",
        lambda self, name: (_ for _ in ()).throw(OSError(f"{token} refused")),
    )
    training = train(
        schedule={"max_train_steps": 2, "seed": 7},
        saving={"save_every_n_steps": 1},
        hub={"huggingface_repo_id": "me/run"},
    )
    assert training.start() == "done"
    said = [line["text"] for line in training.lines("log") if "could not be uploaded" in line["text"]]
    assert len(said) == 2 and all("*** refused" in text for text in said)
    for path in training.folder.path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
