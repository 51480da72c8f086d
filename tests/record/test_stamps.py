"""The stamp of a file by which caches notice that it has changed."""

import os

from core.record.stamps import stamp, stamp_or_none, version


def test_a_stamp_differs_after_a_change_of_size_or_time_and_is_none_for_what_is_no_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(0, 10**18))
    first = stamp(path), version(path)
    assert first == ((3, 10**18), f"{10**18:x}-3")
    path.write_text("three")
    os.utime(path, ns=(0, 10**18))
    longer = stamp(path), version(path)
    os.utime(path, ns=(0, 10**18 + 100))
    assert len({first, longer, (stamp(path), version(path))}) == 3
    for missing in (tmp_path / "b.txt", f"{path}\0"):
        assert stamp_or_none(missing) is None and version(missing) == ""
