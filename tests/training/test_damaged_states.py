"""States that a disk or a person damaged: a run goes on from the newest whole one and says so, or is refused in words."""

import errno
import shutil

import pytest
import torch
from safetensors.torch import load_file

from core.record import atomic
from core.record.run_folder import is_whole, newest_state, seal_state, state_step, states_in
from core.training.saving import states
from core.training.saving.resume import find_state
from tests.refusals import refused

STEPS = {"schedule": {"max_train_steps": 6, "seed": 7}, "saving": {"output_name": "t", "save_every_n_steps": 2}}


@pytest.fixture(scope="module")
def ended():
    """What an unbroken run of 6 steps trains, and its losses: filled by the first test that needs it."""
    return {}


@pytest.fixture(scope="module")
def master(tmp_path_factory):
    """The folder of a killed run, of which each test gets a copy: filled by the first that needs it."""
    return tmp_path_factory.mktemp("killed") / "run"


@pytest.fixture
def whole(train, ended):
    if not ended:
        training = train(**STEPS)
        assert training.start() == "done"
        ended |= {"weights": load_file(training.file()), "losses": training.losses()}
    return ended


@pytest.fixture
def killed(train, master):
    """A run with states of the steps 2 and 4 that was killed in step 5."""
    training = train(**STEPS)
    if master.exists():
        shutil.copytree(master, training.folder.path, dirs_exist_ok=True)
        return training

    class Killed(BaseException):
        pass

    def look(line):
        if line["kind"] == "backed_up" and line["step"] == 4:
            raise Killed

    training.on_line = look
    with pytest.raises(Killed):
        training.start()
    assert [state_step(path) for path in states_in(training.folder.states)] == [4, 2]
    shutil.copytree(training.folder.path, master)
    return training


def cut(state):
    path = state / "training.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_byte(state):
    path = state / "training.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_another(state):
    shutil.copy(state.with_name("step00000002") / "complete.json", state)


def emptied(state):
    shutil.rmtree(state)
    state.mkdir()


def gone(name):
    def remove(state):
        (state / name).unlink()

    remove.__name__ = f"no {name}"
    return remove


DAMAGES = [
    cut,
    one_byte,
    of_another,
    emptied,
    gone("training.pt"),
    gone("complete.json"),
]


def warnings(training):
    return [line for line in training.lines("log") if line["level"] == "warning"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_state_is_not_whole(tmp_path, damage):
    for step in (2, 4):
        state = tmp_path / f"step0000000{step}"
        state.mkdir()
        (state / "training.pt").write_bytes(bytes(range(step, 100)))
        seal_state(state)
        assert is_whole(state)
    damage(state)
    assert not is_whole(state) and newest_state(tmp_path).name == "step00000002"


@pytest.mark.slow
def test_a_run_goes_on_from_the_newest_whole_state_and_says_so(killed, whole):
    cut(killed.folder.states / "step00000004")
    again = killed.again()
    assert again.start() == "done"
    (said,) = warnings(again)
    assert "step 4 is damaged" in said["text"] and "step 2" in said["text"]
    assert "damaged-step00000004" in said["fix"]
    assert again.losses() == whole["losses"]
    trained = load_file(again.file())
    assert all(torch.equal(trained[name], value) for name, value in whole["weights"].items())
    assert [path.name for path in states_in(again.folder.states)] == ["step00000006", "step00000004"]
    assert all(map(is_whole, states_in(again.folder.states)))


@pytest.mark.slow
def test_a_damaged_state_takes_no_place_among_those_that_are_kept(killed):
    """The older whole one would have to go for it, and with one state kept the one just saved."""
    cut(killed.folder.states / "step00000004")
    again = killed.again()

    def look(line):
        if line["kind"] == "steps":
            again.token.cancel()

    again.on_line = look
    again.start()
    there = states_in(again.folder.states)
    assert len(there) == 2 and all(map(is_whole, there)) and state_step(there[1]) == 2


@pytest.mark.slow
def test_where_every_state_is_damaged_nothing_is_begun_anew(killed):
    for state in states_in(killed.folder.states):
        cut(state)
    before = {path.name: path.read_bytes() for path in killed.folder.checkpoints.iterdir()}
    with refused("state.damaged"):
        killed.again().start()
    assert {path.name: path.read_bytes() for path in killed.folder.checkpoints.iterdir()} == before
    assert [state_step(path) for path in states_in(killed.folder.states)] == [4, 2]


@pytest.mark.slow
def test_a_run_without_a_state_begins_anew_and_says_so(killed, whole):
    shutil.rmtree(killed.folder.states)
    again = killed.again()
    assert again.start() == "done"
    assert ["no training state" in line["text"] for line in warnings(again)] == [True]
    assert again.losses() == whole["losses"]


@pytest.mark.slow
def test_a_state_to_begin_from_that_is_damaged_is_named(killed, train):
    newest = newest_state(killed.folder.states)
    cut(newest)
    with refused("state.damaged", newest.name):
        find_state(str(newest), killed.workspace)
    assert find_state(killed.folder.name, killed.workspace).name == "step00000002"
    cut(killed.folder.states / "step00000002")
    with refused("state.damaged", killed.folder.name):
        find_state(killed.folder.name, killed.workspace)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["training.pt", "complete.json"])
def test_a_state_that_cannot_be_written_is_said_and_the_training_goes_on(train, whole, monkeypatch, place):
    training, failed = train(**STEPS), []
    real = {"training.pt": atomic.sync_file, "complete.json": seal_state}

    def fails(kind):
        def work(*arguments):
            state = [str(each) for each in arguments if "/state/" in str(each)]
            if kind == place and state and not failed and states_in(training.folder.states):
                failed.append(state[0])
                raise OSError(errno.ENOSPC, "it cannot", state[0])
            return real[kind](*arguments)

        return work

    monkeypatch.setattr(states.atomic, "sync_file", fails("training.pt"))
    monkeypatch.setattr(states, "seal_state", fails("complete.json"))
    assert training.start() == "done" and failed
    (said,) = [line for line in training.lines("log") if line["level"] == "error"]
    assert "training state of step 4" in said["text"] and "tries again" in said["fix"]
    assert [line["step"] for line in training.lines("backed_up")] == [2, 6]
    assert sorted(path.name for path in training.folder.states.iterdir()) == ["step00000002", "step00000006"]
    assert training.losses() == whole["losses"]


@pytest.mark.slow
def test_what_a_kill_left_half_written_is_taken_away(killed):
    left = killed.folder.states / ".tmp-step00000003"
    left.mkdir()
    (left / "training.pt").write_bytes(b"half")
    (killed.folder.checkpoints / ".tmp-abc.safetensors").write_bytes(b"half")
    assert killed.again().start() == "done"
    assert not list(killed.folder.checkpoints.glob(".tmp-*"))
    assert sorted(path.name for path in killed.folder.states.iterdir()) == ["step00000004", "step00000006"]


def test_a_run_in_a_folder_that_takes_no_files_is_a_plain_problem(killed, monkeypatch):
    def refuse(self, *arguments, **named):
        raise PermissionError(errno.EACCES, "Permission denied", str(killed.folder.path / "lock"))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with refused("file.unwritable") as caught:
        killed.folder.lock()
    assert caught.value.problems[0].fix


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"training.pt"', '{"training.pt": 3}', '{"other.pt": {}}', "\xff"]
)
def test_a_state_that_lists_nothing_is_not_whole(tmp_path, text):
    state = tmp_path / "step00000001"
    state.mkdir()
    (state / "training.pt").write_bytes(b"x")
    seal_state(state)
    assert is_whole(state)
    (state / "complete.json").write_bytes(text.encode("latin-1"))
    assert not is_whole(state)
