"""Numbers, images and settings for TensorBoard and wandb; what they may not be told."""

import errno
import inspect
import sys
import threading
import time
import types

import pytest
from PIL import Image

from core.record.problems import ProblemsError
from core.settings.base import declared
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.methods import methods
from core.training.checks.named_files import named_file_problems
from core.training.loop import trackers
from core.training.loop.reports import rate_name
from core.training.loop.trackers import WriterOptions, log_folder, logged_settings, make_tracker, tracker_config


class FakeRun:
    def __init__(self, **given):
        self.given, self.logged, self.finished = given, [], False
        self.config = {}

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A package of this name that keeps what it is told."""
    module = types.ModuleType("wandb")
    module.runs, module.keys = [], []
    module.login = lambda key: module.keys.append(key)
    module.Settings = lambda **given: given
    module.Image = lambda image, caption: ("image", caption)

    def init(**given):
        module.runs.append(FakeRun(**given))
        return module.runs[-1]

    module.init = init
    module.__spec__ = types.SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def tracker_of(tmp_path, said=None, **logging):
    job = build(TrainJob, {"logging": logging, "dataset": {"folder": "/home/me/images"}})
    said = [] if said is None else said
    return make_tracker(job, tmp_path / "20260102-030405_t" / "logs", lambda text, level: said.append(text))


def read_board(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_wandb_gets_each_step_once_its_images_and_the_key_of_this_machine(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "key-of-wandb")
    tracker = tracker_of(tmp_path, log_with="wandb", log_tracker_name="mine", wandb_run_name="first", log_config=True)
    tracker.add("loss/current", 0.5, 1)
    tracker.add("lr/unet", 1e-4, 1)
    tracker.add("loss/current", 0.25, 2)
    tracker.image("sample_0", Image.new("RGB", (8, 8)), "a fox", 2)
    tracker.close()
    (run,) = wandb.runs
    assert run.given["project"] == "mine" and run.given["name"] == "first" and wandb.keys == ["key-of-wandb"]
    assert run.logged == [
        {"loss/current": 0.5, "lr/unet": 1e-4, "global_step": 1},
        {"loss/current": 0.25, "sample_0": ("image", "a fox"), "global_step": 2},
    ]
    assert run.finished and run.config["network.rank"] == 16 and "key-of-wandb" not in str(run.config)


@pytest.mark.parametrize(
    ("kind", "project"),
    [
        ("lora", "network_train"),
        ("dreambooth", "dreambooth"),
        ("fine_tune", "finetuning"),
        ("embedding", "textual_inversion"),
    ],
)
def test_the_project_at_wandb_is_called_as_sd_scripts_calls_that_of_the_method(tmp_path, wandb, kind, project):
    job = build(TrainJob, {"method": {"kind": kind}, "logging": {"log_with": "wandb"}})
    tracker = make_tracker(job, tmp_path / "20260102-030405_t" / "logs", lambda text, level: None)
    tracker.add("loss/current", 0.5, 1)
    tracker.close()
    assert wandb.runs[0].given["project"] == project


REFUSED_CONFIGS = {
    "[wandb": 1,
    "[neptune]\na = 1": 1,
    "wandb = 3": 1,
    "[tensorboard]\nnope = 1": 1,
    "[tensorboard]\nlog_dir = 'a'": 1,
    "[tensorboard]\nmax_queue = '9'\nflush_secs = true": 2,
    "[wandb]\nproject = 'a'\ndir = 'b'\nentiy = 'us'": 3,
    "[wandb]\nentity = 5\ntags = 'fox'\nmode = 'offlin'\nresume = 'allways'\nid = 'a/b'\nresume_from = 'x'\n[neptune]": 8,
    "[wandb]\ntags = ['']": 1,
}


def test_the_arguments_of_a_tensorboard_writer_are_those_of_the_library(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    assert {*inspect.signature(SummaryWriter).parameters} == {*WriterOptions.model_fields, "log_dir"}
    (tmp_path / "c.toml").write_text("[tensorboard]\nmax_queue = 5\nfilename_suffix = '.a'\n")
    assert tracker_config(str(tmp_path / "c.toml")) == {"tensorboard": {"max_queue": 5, "filename_suffix": ".a"}}


def test_the_trackers_own_settings_replace_the_runs_name(tmp_path, wandb):
    (tmp_path / "c.toml").write_text(
        "[wandb]\nentity = 'us'\ntags = ['fox']\nmode = 'offline'\nresume = true\nid = 'f1 a'\n"
    )
    tracker = tracker_of(tmp_path, log_with="wandb", wandb_run_name="x", log_tracker_config=str(tmp_path / "c.toml"))
    tracker.add("a", 1.0, 1)
    tracker.close()
    assert wandb.runs[0].given["entity"] == "us" and "name" not in wandb.runs[0].given


@pytest.mark.parametrize(("text", "count"), REFUSED_CONFIGS.items())
def test_options_that_a_tracker_would_refuse_at_step_1_are_refused_all_at_once(tmp_path, text, count):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ProblemsError) as raised:
        tracker_config(str(tmp_path / "c.toml"))
    assert len(raised.value.problems) == count, raised.value


def test_a_project_that_wandb_refuses_is_named_before_the_start(workspace, wandb):
    for name, count in (("a fox", 0), ("50%", 1), ("a" * 129, 1)):
        logging = {"log_with": "wandb", "log_tracker_name": name}
        codes = [each.code for each in named_file_problems(build(TrainJob, {"logging": logging}), workspace)]
        assert codes.count("trackers.bad-project") == count


def test_a_missing_wandb_is_said_before_the_start_with_how_to_get_it(workspace, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, count in (("wandb", 1), ("all", 1), ("tensorboard", 0)):
        found = named_file_problems(build(TrainJob, {"logging": {"log_with": kind}}), workspace)
        assert len(found) == count and all("pip install wandb" in problem.fix for problem in found)


def test_one_tracker_that_fails_is_said_once_and_the_other_goes_on(tmp_path, wandb):
    said = []
    wandb.init = lambda **given: (_ for _ in ()).throw(OSError("no network"))
    tracker = tracker_of(tmp_path, said, log_with="all")
    for step in range(3):
        tracker.add("loss/current", float(step), step)
    tracker.close()
    assert len(said) <= 1, said
    board = read_board(tmp_path / "20260102-030405_t" / "logs")
    assert [entry.value for entry in board.Scalars("loss/current")] == [0.0, 1.0, 2.0]


def test_logs_lie_where_asked_named_by_prefix_and_the_runs_time(tmp_path):
    job = build(TrainJob, {"logging": {"logging_dir": str(tmp_path), "log_prefix": "fox_"}})
    folder = tmp_path / "20260102-030405_t" / "logs"
    assert log_folder(job, folder) == tmp_path / "fox_20260102030405"
    assert log_folder(TrainJob(), folder) == folder


def test_tensorboards_files_lie_in_a_folder_of_the_trackers_name_and_take_its_own_settings(tmp_path):
    (tmp_path / "c.toml").write_text("[tensorboard]\nfilename_suffix = '.fox'\n")
    own = {"log_tracker_name": "mine", "log_tracker_config": str(tmp_path / "c.toml")}
    tracker = tracker_of(tmp_path, log_with="tensorboard", **own)
    tracker.add("a", 1.0, 1)
    tracker.close()
    (path,) = (tmp_path / "20260102-030405_t" / "logs" / "mine").iterdir()
    assert path.name.endswith(".fox")


def test_tensorboard_shows_the_steps_that_a_resumed_run_repeats_once(tmp_path):
    for life, steps in enumerate(([1, 2, 3, 4], [3, 4, 5])):
        tracker = tracker_of(tmp_path, log_with="tensorboard", log_config=True)
        for step in steps:
            tracker.add("loss", float(life), step)
        tracker.close()
        (file,) = (tmp_path / "20260102-030405_t" / "logs").glob("events.out.*[0-9]")
        file.rename(file.with_suffix(f".{life}.life"))  # TensorBoard reads files in the order of their names
    board = read_board(tmp_path / "20260102-030405_t" / "logs")
    assert [(each.step, each.value) for each in board.Scalars("loss")] == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    assert "settings/text_summary" in board.Tags()["tensors"]


@pytest.mark.parametrize(("log_with", "kinds"), [("none", []), ("tensorboard", ["TensorBoard"]), ("wandb", ["Wandb"])])
def test_numbers_go_to_the_trackers_that_are_set_and_settings_only_where_that_is_set(tmp_path, wandb, log_with, kinds):
    for log_config in (False, True):
        trackers = tracker_of(tmp_path, log_with=log_with, log_config=log_config)
        assert [type(each).__name__ for each in trackers._trackers] == kinds
        trackers.close()
    assert [bool(run.config) for run in wandb.runs] == ([True] if log_with == "wandb" else [])


def test_settings_are_sent_without_places_on_this_machine():
    places = {
        "model": {"base_model": "/home/me/m.safetensors", "vae": "/home/me/v"},
        "dataset": {"folder": "/home/me/p", "sources": [{"folder": "/home/me/q"}], "reg_data_dir": "/home/me/r"},
        "saving": {"copy_to": "/home/me/s", "metadata_thumbnail": "/home/me/t.png"},
        "samples": {"sample_prompts_file": "/home/me/u.txt"},
        "logging": {"logging_dir": "/home/me/v", "log_tracker_config": "/home/me/w", "console_log_file": "/home/me/x"},
        "resume": {"resume": "/home/me/y"},
        "network": {"network_weights": "/home/me/z", "base_weights": ["/home/me/b"]},
        "embedding": {"embedding_weights": "/home/me/e"},
        "hub": {"huggingface_repo_id": "me/secret"},
    }
    sent = logged_settings(build(TrainJob, places))
    assert "/home/me" not in str(sent) and "me/secret" not in str(sent)
    assert sent["network.rank"] == 16 and set(sent) < {entry.path for entry in declared(TrainJob)}


def test_no_setting_holds_a_key():
    names = [entry.name for entry in declared(TrainJob)]
    assert not [name for name in names if any(word in name for word in ("key", "secret", "password", "face_token"))]


@pytest.mark.slow
def test_a_training_writes_the_numbers_under_their_names(train):
    training = train(
        logging={"log_with": "tensorboard", "log_config": True},
        schedule={"max_train_steps": 4, "seed": 7},
        validation={"validation_split": 0.2, "validate_every_n_steps": 2},
        samples={"sample_prompts": ["a fox"], "sample_steps": 1},
    )
    training.start()
    board = read_board(training.folder.logs)
    assert {
        "loss/current",
        "loss/average",
        "loss/corrected",
        "loss/epoch_average",
        "lr/unet",
        "norm/gradient",
        "norm/weights",
        "loss/validation/step_average",
        "loss/validation/step_divergence",
    } <= set(board.Tags()["scalars"])
    assert [entry.step for entry in board.Scalars("loss/current")] == [1, 2, 3, 4]
    assert board.Tags()["images"] == ["sample_0"] and "settings/text_summary" in board.Tags()["tensors"]


@pytest.mark.parametrize(
    "method, group, name",
    [
        ("lora", "text_encoder plus", "lr/textencoder plus"),
        ("lora", "unet_block3", "lr/unet_block3"),
        ("fine_tune", "unet_block3", "lr/block3"),
        ("dreambooth", "text_encoder", "lr/text_encoder1"),
        ("fine_tune", "text_encoder_2", "lr/text_encoder2"),
        ("fine_tune", "unet", "lr/unet"),
        ("embedding", "text_encoder", "lr"),
    ],
)
def test_rates_have_the_names_of_sd_scripts_own_script(method, group, name):
    assert rate_name(methods()[method], group) == name


def test_a_word_is_logged_under_names_of_its_own(train):
    training = train(
        method={"kind": "embedding"},
        embedding={"token_string": "<glyph>", "init_word": "a"},
        optimizer={"optimizer_type": "Prodigy", "learning_rate": 1.0},
        logging={"log_with": "tensorboard"},
        schedule={"max_train_steps": 2, "seed": 7},
    )
    training.start()
    names = set(read_board(training.folder.logs).Tags()["scalars"])
    assert {"loss", "loss/epoch", "lr", "lr/d*lr", "norm/weights"} <= names
    assert not names & {"loss/current", "loss/epoch_average", "lr/textencoder"}


def test_tensorboard_says_that_the_disk_is_full_and_writes_again_once_it_is_not(tmp_path, monkeypatch):
    from tensorboard.summary.writer.record_writer import RecordWriter

    full, write, now = threading.Event(), RecordWriter.write, [1000.0]

    def write_or_fail(self, data):
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    def check_or_fail(folder):
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", write_or_fail)
    monkeypatch.setattr(trackers, "check_space", check_or_fail)
    monkeypatch.setattr(trackers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    said = []
    tracker = tracker_of(tmp_path, said, log_with="tensorboard")
    tracker.add("loss", 1.0, 1)
    tracker._trackers[0]._writer.flush()
    full.set()
    for _ in range(6000):  # its thread writes when it comes to it
        if said:
            break
        tracker.add("loss", 2.0, 2)
        time.sleep(0.01)
    for _ in range(3):
        now[0] += trackers.RETRY_SECONDS + 1
        tracker.add("loss", 0.0, 3)
    assert len(said) == 1, "once for each time that it is full"
    full.clear()
    tracker.add("loss", 0.0, 600)  # too early: it is not tried at every step
    now[0] += trackers.RETRY_SECONDS + 1
    tracker.add("loss", 7.0, 601)
    tracker.close()
    assert len(said) == 2
    shown = read_board(tmp_path / "20260102-030405_t" / "logs").Scalars("loss")
    steps = [each.step for each in shown]  # of two files, which a quick machine begins in one second
    assert (min(steps), max(steps)) == (1, 601) and 600 not in steps


def test_a_folder_that_takes_no_files_is_told_before_a_writer_begins(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OSError):
        trackers.check_space(tmp_path / "logs")
    trackers.check_space(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
