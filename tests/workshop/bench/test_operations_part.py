"""The part `operations` of the benchmark: the command that counts, and its rows."""

from workshop.bench import operations
from workshop.bench.measure import Ended
from workshop.bench.run import known_part


def test_each_counted_case_is_a_row(tmp_path, monkeypatch):
    printed = '{"name": "sd15 lora", "total": 1200, "operations": {"optimizer": 1, "base forward": 1199}, "waits": 0}\n'
    commands = []

    def run(command, title):
        commands.append(command)
        return Ended(f"a warning\n{printed}", 1.0, 0)

    monkeypatch.setattr(operations, "run_process", run)
    counted = operations.measure_operations(tmp_path, True, print)
    ((name, words),) = operations.operation_rows(counted)
    assert known_part("operations") and commands[0][-1] == "sd15"
    assert name == "sd15 lora" and "1,200" in words and "base forward 1,199" in words
