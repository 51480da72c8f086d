"""Measuring what a data type costs on this machine."""

from core.families import type_speed


def test_the_least_of_each_types_rounds_counts_on_all_threads_and_a_hopeless_type_gets_one(monkeypatch):
    import torch

    threads = []
    monkeypatch.setattr(type_speed.torch, "set_num_threads", threads.append)
    monkeypatch.setattr(type_speed.torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(type_speed.machine, "threads", lambda: 7)
    monkeypatch.setattr(type_speed, "_work", lambda dtype: lambda: dtype)
    for slow, rounds in ((1.0, type_speed.ROUNDS), (100.0, 1)):
        asked = {torch.float32: [], torch.bfloat16: []}

        def seconds(one, slow=slow, asked=asked):
            rows = asked[one()]
            rows.append((slow if one() == torch.bfloat16 else 1.0) / (len(rows) + 1))
            return rows[-1]

        monkeypatch.setattr(type_speed, "_seconds", seconds)
        assert type_speed.measure() == {"fp32": 1 / rounds, "bf16": slow / rounds}
        assert [len(rows) for rows in asked.values()] == [rounds, rounds]
        assert threads == [7, 3]
        threads.clear()
