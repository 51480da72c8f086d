"""Ways in that were tried against a shared page: each must stay shut. Hosts and origins: test_request_check.py; settings: test_named.py."""

from __future__ import annotations

import json
import os

import gradio as gr
from test_request_check import JSON, ask

from tabs.server.message_check import UPLOADED, with_uploads


def test_no_handler_takes_a_file_that_was_not_uploaded(served, tmp_path):
    """Files, as Gradio's own uploads name them: outside the folder of uploads, or at an address to fetch."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"the owner's")
    takes = [
        each
        for each in served.blocks.fns.values()
        if any(isinstance(block, (gr.File, gr.UploadButton, gr.Image)) for block in each.inputs)
    ]
    assert takes
    for each in takes:
        for path in (str(secret), "/etc/passwd", "http://127.0.0.1:1/x", "../../etc/passwd"):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
            data = [[file] if isinstance(block, (gr.File, gr.UploadButton)) else file for block in each.inputs]
            body = json.dumps({"data": data, "fn_index": each._id, "session_hash": "attack"}).encode()
            status, content, _ = ask(served, "POST", "/gradio_api/run/predict", body, **JSON)
            assert 400 <= status < 500 and b"the owner's" not in content, (each.name, path, status)


def test_a_name_of_an_upload_leads_nowhere(served):
    before = set(served.workspace.outputs.rglob("*"))
    for name in ("../../../evil.json", "..\\..\\evil.json", "/tmp/evil.json", ".atelier/inbox/evil.json"):
        form = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n{{}}\r\n--x--\r\n'.encode()
        )
        status, content, _ = ask(
            served, "POST", "/gradio_api/upload", form, Content_Type="multipart/form-data; boundary=x"
        )
        assert status in (200, 400)
        if status == 200:
            [stored] = json.loads(content)
            assert UPLOADED.fullmatch(stored) and str(served.workspace.outputs) not in stored
    assert not [path for path in set(served.workspace.outputs.rglob("*")) - before if path.parent.name == "inbox"]


def test_an_upload_is_named_below_the_servers_folder_both_ways(tmp_path):
    folder, stored = f"{tmp_path}{os.sep}", f"{'0a' * 32}/a b.png"
    said = {"data": ["", None, {"path": stored}, [{"path": stored}, {"path": "../x"}]], "fn_index": 1}
    told = json.loads(with_uploads(said, folder))
    whole = str(tmp_path / ("0a" * 32) / "a b.png")
    assert told["data"] == ["", None, {"path": whole}, [{"path": whole}, {"path": "../x"}]]
    for path in ("../x", "/etc/passwd", whole, f"{'0a' * 32}/../x", f"{'0a' * 32}/a/b"):
        assert with_uploads({"data": [{"path": path}]}, folder) is None


def test_paths_with_a_way_out_read_nothing(served):
    for path in (
        "/assets/../../../../etc/passwd",
        "/static/..%2f..%2f..%2fetc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/svelte/../x",
    ):
        status, content, _ = ask(served, "GET", path)
        assert status >= 400 and b"root:" not in content, path
