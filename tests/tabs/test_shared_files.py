"""A page that is served to others closes all files but its own folders, also for what metadata files name."""

import pytest

import core.record.allowed as allowed
from core.record.workspace import PROJECT, Workspace


class Launched(Exception):
    pass


@pytest.mark.parametrize(
    ("host", "share", "closed"), [("127.0.0.1", False, False), ("0.0.0.0", False, True), ("127.0.0.1", True, True)]
)
def test_serving_to_others_closes_files_outside(tmp_path, monkeypatch, host, share, closed):
    from tabs.server import app

    def launch(page, **options):
        raise Launched

    monkeypatch.setattr(app, "launch", launch)
    monkeypatch.setattr(allowed, "_open_folders", None)
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")
    with pytest.raises(Launched):
        app.serve(None, workspace, host=host, share=share, logins=[("me", "secret")])
    assert allowed.may_reach(PROJECT / "README.md") is not closed
    assert allowed.may_reach(workspace.outputs / "datasets" / "a.png")
