"""A page that is served to others closes all files but its own folders, also for what metadata files name."""

from types import SimpleNamespace

import pytest

import core.record.allowed as allowed
from core.record.workspace import PROJECT, Workspace


class Launched(Exception):
    pass


@pytest.mark.parametrize(("names", "where"), [((), "on this machine only."), (("a.colab.dev",), "and as a.colab.dev.")])
def test_a_share_link_that_fails_says_what_to_do_and_not_what_gradio_advises(
    tmp_path, monkeypatch, capsys, names, where
):
    from tabs.server import app

    def launch(page, **options):
        print("Download this file: frpc_linux_amd64")
        return SimpleNamespace(share_url=None, server_port=7860, close=lambda: None)

    def wait(self, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "launch", launch)
    monkeypatch.setattr(allowed, "_open_folders", None)
    monkeypatch.setattr(app.threading.Event, "wait", wait)
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")
    app.serve(None, workspace, share=True, names=names, logins=[("me", "secret")])
    said = capsys.readouterr().out
    assert "Download" not in said and "on Colab run the cell again" in said and where in said


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
