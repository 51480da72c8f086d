"""A launch that started one process where several were asked for is refused, not trained."""

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from core.record.problems import ProblemsError
from core.record.processes import check_launch
from core.record.worker import Gone


def started_alone(monkeypatch, *words):
    """The environment of the one process that `accelerate launch` starts without --multi_gpu, from accelerate's own code."""
    arguments = launch_command_parser().parse_args(
        ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", *words, "webui.py"]
    )
    arguments.use_cpu, arguments.num_cpu_threads_per_process = True, 1
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in prepare_simple_launcher_cmd_env(arguments)[1].items():
        monkeypatch.setenv(name, value)


def test_several_processes_of_which_one_was_started_are_refused(monkeypatch):
    started_alone(monkeypatch, "--num_processes", "2")
    with pytest.raises(ProblemsError) as refused:
        check_launch()
    assert refused.value.codes == ["launch.one-process"] and "--multi_gpu" in refused.value.problems[0].fix


def test_one_process_that_was_asked_for_trains(monkeypatch):
    started_alone(monkeypatch, "--num_processes", "1")
    check_launch()


def test_several_processes_that_were_started_train(monkeypatch):
    started_alone(monkeypatch, "--num_processes", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch()


@pytest.mark.parametrize(("code", "words"), [(3, "code 3"), (0, "code 0"), (-9, "signal SIGKILL"), (None, "code None")])
def test_the_end_of_a_worker_is_a_signal_below_0(code, words):
    assert Gone(False, code, "").exit_text == words
