"""Beginning elsewhere than at step 0, training a finished run further, and the proof that resuming changes nothing."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from core.engine.extend import extend
from core.families import type_speed
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.journal import Journal
from core.record.problems import ProblemsError
from core.record.run_folder import newest_state
from core.training.loop.timetable import Timetable
from core.training.prove import prove
from core.training.saving import resume
from core.training.saving.resume import find_state, parse_address
from core.training.start import run_training
from tests.local_server import Answers, as_hub, serving
from tests.refusals import refused


def same(a, b):
    first, second = load_file(a), load_file(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_its_run(run, folder):
    """A copy of the run's newest training state, without the settings of the run."""
    state = newest_state(run.folder.path / "state")
    return shutil.copytree(state, folder / state.name)


def steps(count, **more):
    return {"schedule": {"max_train_steps": count, "seed": 7} | more}


@pytest.fixture(scope="module")
def trained():
    return {}


@pytest.fixture
def ended(train, trained):
    """ended(6): a run of so many steps for all tests, which only read it."""

    def run(count):
        if count not in trained:
            trained[count] = train(**steps(count))
            assert trained[count].start() == "done"
        return trained[count]

    return run


@pytest.mark.slow
def test_a_finished_run_trains_further_as_if_it_had_been_longer_and_keeps_its_first_file(train, ended):
    whole, short = ended(3), train(**steps(2))
    short.start()
    first = short.file().read_bytes()
    records = {"kept.json": "kept", "choices.jsonl": "left", "assess.json": "cells", "verdict.json": "files"}
    for name, key in records.items():
        (short.folder.path / name).write_text(
            json.dumps({f"checkpoints/{short.file().name}": key, key: short.file().name})
        )
    again = short.again()
    again.job = extend(short.folder, {"schedule": {"max_train_steps": 3}, "saving": {"training_comment": "longer"}})
    assert json.loads((short.folder.path / "job-1.json").read_text())["schedule"]["max_train_steps"] == 2
    assert again.start() == "done"
    assert same(whole.file(), again.file()) and again.losses() == whole.losses()
    renamed = short.file("t-step00000002.safetensors")
    assert renamed.read_bytes() == first
    for name, key in records.items():  # else they would be of the new final checkpoint
        assert json.loads((short.folder.path / name).read_text()) == {
            f"checkpoints/{renamed.name}": key,
            key: renamed.name,
        }


def test_a_resumed_run_cannot_end_before_what_it_has_trained(train):
    training = train(**steps(4), saving={"save_state": True})
    assert training.start() == "done"
    for changes in ({"max_train_steps": 2}, {"max_train_steps": None, "max_train_epochs": 1}):
        with refused("resume.ends-before", "4 steps"):
            extend(training.folder, {"schedule": changes})
    assert extend(training.folder, {"schedule": {"max_train_steps": 4}, "saving": {"training_comment": "same"}})


def test_what_a_run_trains_cannot_change_while_it_goes_on(train):
    training = train(**steps(1))
    with pytest.raises(ProblemsError) as caught:
        extend(training.folder, {"network": {"rank": 8}, "schedule": {"seed": 9}, "saving": {"output_name": "u"}})
    assert {problem.where for problem in caught.value.problems} == {
        "network.rank",
        "schedule.seed",
        "saving.output_name",
    }
    assert not (training.folder.path / "job-1.json").exists()


@pytest.mark.slow
def test_the_state_of_another_run_is_gone_on_from(train, ended):
    whole, short = ended(6), ended(4)
    for given in (short.folder.path, newest_state(short.folder.states)):
        rest = train(**steps(6), resume={"resume": str(given)})
        assert rest.start() == "done"
        assert same(whole.file(), rest.file()) and sorted(rest.losses()) == [5, 6]


def test_a_new_run_from_a_state_trains_at_its_own_rate_and_with_its_own_optimizer(train, ended):
    short = ended(1)
    given = {"resume": {"resume": str(short.folder.path)}}
    slower = train(**steps(2), **given, optimizer={"learning_rate": 2e-5})
    assert slower.start() == "done" and set(slower.lines("steps")[-1]["rates"].values()) == {2e-5}
    with refused("state.other-settings", "AdamW", "SGD"):
        train(**steps(2), **given, optimizer={"optimizer_type": "SGD"}).start()


def test_a_run_that_was_cut_off_before_its_last_sample_gets_it(train, monkeypatch):
    training = train(**steps(2), samples={"sample_prompts": ["a fox"], "sample_steps": 1, "sample_at_first": False})
    with monkeypatch.context() as patch:
        patch.setattr(Timetable, "_sample", lambda timetable: None)
        assert training.start() == "done" and not training.lines("sample")
    again = training.again()
    assert again.start() == "done" and [line["step"] for line in again.lines("sample")] == [2]


@pytest.mark.slow
def test_a_state_of_another_network_is_refused_with_what_differs(train, ended, tmp_path):
    short = ended(1)
    alone = {"resume": str(without_its_run(short, tmp_path))}
    other = train(**steps(2), network={"rank": 2, "alpha": 2.0}, resume=alone)
    with refused("network.other-modules", "has rank 4, not 2"):
        other.start()
    weaker = train(**steps(2), network={"alpha": 2.0}, resume=alone)
    with refused("network.other-alpha", "is 4, not 2"):
        weaker.start()
    late = train(**steps(1), resume={"resume": str(short.folder.path)})
    with refused("resume.after-end", "start at step 1, but ends at step 1"):
        late.start()


@pytest.mark.slow
@pytest.mark.parametrize(
    "groups",
    [
        {"method": {"kind": "embedding"}, "embedding": {"token_string": "zkw", "init_word": "fox"}},
    ],
)
def test_a_state_of_another_method_is_refused_in_words(train, ended, tmp_path, groups):
    other = train(**steps(2), **groups, resume={"resume": str(without_its_run(ended(1), tmp_path))})
    with refused("state.other-weights"):
        other.start()


def test_what_is_no_state_is_said(train, tmp_path):
    (tmp_path / "empty").mkdir()
    workspace = train().workspace
    with refused("resume.no-state"):
        find_state(str(tmp_path / "empty"), workspace)
    with refused("resume.no-folder"):
        find_state(str(tmp_path / "none"), workspace)


@pytest.mark.slow
def test_beginning_at_a_step_goes_on_with_its_images_rate_and_numbers(train, ended):
    late = train(**steps(6), resume={"initial_step": 4}, saving={"save_every_n_steps": 5})
    whole = ended(6)
    late.start()
    assert sorted(late.losses()) == [5, 6]
    assert late.file("t-step00000005.safetensors").is_file()
    again = train(**steps(6), resume={"initial_step": 4, "skip_until_initial_step": False})
    again.start()
    assert sorted(again.losses()) == [5, 6]
    assert again.losses()[5] == whole.losses()[1], "the images, noise and timesteps of the first step"
    assert late.losses()[5] != again.losses()[5]


@pytest.mark.slow
def test_weights_of_an_earlier_lora_and_a_step_go_on_where_it_ended(train):
    """With an optimizer that remembers nothing, the weights and the step are all there is to go on from."""
    plain = {"optimizer": {"optimizer_type": "SGD", "learning_rate": 0.5}}
    curve, begins = {"lr_scheduler": "linear"}, {"initial_step": 3}
    whole, short = train(**steps(6, **curve), **plain), train(**steps(6, **curve), **plain)
    whole.start()
    first_half(short, 3)
    earlier = str(short.file("t-step00000003.safetensors"))
    rest = train(**steps(6, **curve), **plain, network={"network_weights": earlier}, resume=begins)
    assert rest.start() == "done"
    assert {step: whole.losses()[step] for step in (4, 5, 6)} == rest.losses()
    assert same(whole.file(), rest.file())
    last, same_step = rest.lines("steps")[-1], whole.lines("steps")[-1]
    assert (last["rates"], last["epoch"]) == (same_step["rates"], 2) == ({"unet": pytest.approx(0.5 / 6)}, 2)
    first_images = {"network": {"network_weights": earlier}, "resume": begins | {"skip_until_initial_step": False}}
    again = train(**steps(6, **curve), **plain, **first_images)
    assert again.start() == "done" and sorted(again.losses()) == [4, 5, 6]
    assert not same(whole.file(), again.file())


def first_half(training, step):
    """Train to this step, stop and save, as a person would."""
    with Journal(training.folder.path) as journal:
        context = JobContext(training.workspace, training.folder, journal, NoCommands(), "cpu", training.token)
        assert run_training(training.job, context, stop_at=step) == "stopped"


@pytest.mark.slow
def test_beginning_at_an_epoch_is_beginning_at_its_first_step(train):
    groups = {"schedule": {"max_train_epochs": 3, "max_train_steps": None, "seed": 7}}
    by_epoch = train(**groups, resume={"initial_epoch": 3})
    by_epoch.start()
    per_epoch = by_epoch.lines("planned")[0]["steps_per_epoch"]
    by_step = train(**groups, resume={"initial_step": 2 * per_epoch})
    by_step.start()
    assert min(by_epoch.losses()) == 2 * per_epoch + 1 and same(by_epoch.file(), by_step.file())


@pytest.mark.slow
def test_the_base_model_is_drawn_first_wherever_a_run_begins_and_once(train):
    training = train(**steps(4), resume={"initial_step": 2}, samples={"sample_prompts": ["a fox"], "sample_steps": 1})
    training.start()
    assert [line["step"] for line in training.lines("sample")] == [2, 4]


@pytest.mark.slow
def test_the_proof_names_what_a_resume_loses(train, monkeypatch):
    from core.training.saving.states import States

    real = States._content

    def without(states):
        return real(states) | {"optimizer": states.run.stepper.optimizer.state_dict() | {"state": {}}}

    monkeypatch.setattr(States, "_content", without)
    training = train()
    found = prove(training.job, training.workspace, "cpu", 4)
    assert not list((training.workspace.private / "proofs").iterdir())
    assert not found.equal and "NOT equal" in found.report()
    assert any(name.startswith("/weights/") for name in found.different)


# ---- from the hub


def test_addresses_of_states_are_read_as_sd_scripts_reads_them():
    found = parse_address("me/run/my_lora-state:main:dataset")
    assert (found.repository, found.path, found.revision, found.kind) == ("me/run", "my_lora-state", "main", "dataset")
    assert parse_address("me/run/a/b").path == "a/b" and parse_address("me/run/a:v2").kind == "model"
    for text in ("me/run", "justone", "me/run/a:main:other"):
        with pytest.raises(ProblemsError):
            parse_address(text)


@pytest.mark.slow
def test_a_state_of_the_hub_is_fetched_into_the_run_and_gone_on_from(train, ended, monkeypatch):
    whole, short, asked = ended(6), ended(4), []
    monkeypatch.setattr(resume, "fetch_state", lambda *given: asked.append(given) or newest_state(short.folder.states))
    rest = train(**steps(6), resume={"resume": "me/run/state:main", "resume_from_huggingface": True})
    assert rest.start() == "done"
    assert asked == [("me/run/state:main", rest.folder.path / "resumed")]
    assert sorted(rest.losses()) == [5, 6] and same(whole.file(), rest.file())


class StateHub(Answers):
    """What a repository holds, and its files."""

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        files = self.server.files
        if "/resolve/" in self.path:
            data = files[self.path.split("/resolve/main/")[1]]
            self.send_response(200)
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", "0" * 40)
        else:
            kind = "siblings"
            data = json.dumps({"id": "me/run", "sha": "0" * 40, kind: [{"rfilename": name} for name in files]}).encode()
            if "/tree/" in self.path:
                data = json.dumps([{"type": "file", "path": name, "oid": "0", "size": 1} for name in files]).encode()
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.mark.slow
def test_a_state_is_fetched_from_the_hub(ended, tmp_path, monkeypatch):
    short = ended(1)
    state = newest_state(short.folder.states)
    files = {f"states/one/{path.name}": path.read_bytes() for path in state.iterdir()} | {"README.md": b"words"}
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(StateHub, files=files) as server:
        as_hub(monkeypatch, server)
        found = resume.fetch_state("me/run/states/one:main", tmp_path / "got")
        assert {path.name: path.read_bytes() for path in found.iterdir()} == {
            path.name: path.read_bytes() for path in state.iterdir()
        }
        with refused("resume.no-files", "states/two"):
            resume.fetch_state("me/run/states/two:main", tmp_path / "got")


@pytest.mark.slow
def test_what_auto_meant_at_the_beginning_holds_for_the_whole_run(train, monkeypatch):
    """The types of a machine are measured, and the next measurement may come out otherwise."""

    def measured(bf16_pays: bool) -> None:
        monkeypatch.setattr(type_speed, "bf16_pays", lambda: bf16_pays)

    def precision(run) -> str:
        return torch.load(newest_state(run.folder.states) / "training.pt", weights_only=True)["made_with"]["precision"]

    monkeypatch.setattr("core.families.precision.SMALL_MODEL_BYTES", 0)
    begun = train(**steps(2), saving={"save_state": True})
    measured(True)
    begun.start(stop_at=1)
    assert precision(begun) == "bf16"
    measured(False)
    begun.again().start()
    assert precision(begun) == "bf16"
    fresh = train(**steps(1), saving={"save_state": True})
    fresh.start()
    assert precision(fresh) == "no"
    # A run of an earlier version has no such file: it goes on with what the CPU said of itself.
    begun.folder.machine_file.unlink()
    monkeypatch.setattr("core.record.machine.bf16_is_fast", lambda device: True)
    begun.again().start()
    assert json.loads(begun.folder.machine_file.read_text("utf-8"))["precision"] == "bf16"
