"""What the hub would refuse is known before a training begins; a hub that does not answer stops none."""

import threading

import pytest

from core.formats.hub import upload as hub_upload
from core.formats.hub.upload import Uploads, upload_problem
from core.settings.hub import HubSettings
from tests.local_server import Answers, as_hub, serving
from tests.offline import no_network

ME = {"name": "me", "type": "user", "orgs": [{"name": "Our-Group"}], "auth": {"accessToken": {"role": "write"}}}
RUN = HubSettings(huggingface_repo_id="me/run")


class Hub(Answers):
    """Who the token belongs to, and whether it may write to a repository."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        server.go.wait(60)
        if self.path.startswith("/api/whoami"):
            known = isinstance(server.who, dict)
            self._send(server.who if known else {}, 200 if known else server.who)
        else:
            self._send({}, server.write)

    do_HEAD = do_POST = do_GET

    def _send(self, answer, status):
        self.send_json(answer, status, **({"X_Error_Code": "RepoNotFound"} if status == 404 else {}))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub_upload, "LOOK_SECONDS", 60.0)  # the first question loads the hub's library
    with serving(Hub, who=ME, write=200, asked=[], go=threading.Event()) as server:
        as_hub(monkeypatch, server)
        server.go.set()
        yield server
        server.go.set()


@pytest.mark.parametrize(
    ("who", "write", "repository", "code"),
    [
        (ME, 200, "me/run", ""),
        (ME, 200, "someone/run", ""),
        (ME, 404, "me/run", ""),  # made at the first upload
        (ME, 404, "our-group/run", ""),
        (ME, 404, "someone/run", "hub.other-owner"),
        (ME | {"auth": {"accessToken": {"role": "read"}}}, 404, "me/run", "hub.read-only-token"),
        (ME, 403, "me/run", "hub.no-write-access"),
        (401, 200, "me/run", "hub.bad-token"),
    ],
)
def test_what_the_hub_would_refuse_is_an_error_before_the_start(hub, who, write, repository, code):
    hub.who, hub.write = who, write
    problem = upload_problem(HubSettings(huggingface_repo_id=repository), "hf_token")
    if not code:
        assert problem is None
        return
    assert (problem.level, problem.code) == ("error", code) and problem.fix
    assert "hf_token" not in str(problem)


@pytest.mark.parametrize("who", [500, 503])
def test_a_hub_that_is_down_is_advice(hub, who):
    hub.who = who
    problem = upload_problem(RUN, "hf_token")
    assert (problem.level, problem.code) == ("advice", "hub.unreachable") and str(who) in problem.what


def test_a_hub_that_does_not_answer_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(hub_upload, "LOOK_SECONDS", 0.2)
    hub.go.clear()  # no answer before the end of the test
    problem = upload_problem(RUN, "hf_token")
    assert (problem.level, problem.code) == ("advice", "hub.unreachable")


def test_without_a_network_training_is_not_refused(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with no_network(allow_attempts=True):
        problem = upload_problem(RUN, "hf_token")
    assert (problem.level, problem.code) == ("advice", "hub.unreachable")


def test_without_a_token_nothing_is_asked_and_without_a_repository_nothing_is_said():
    with no_network():
        problem = upload_problem(RUN, None)
        assert (problem.level, problem.code) == ("error", "hub.no-token")
        assert upload_problem(HubSettings(), None) is None
        assert upload_problem(HubSettings(), "hf_token") is None


def test_a_run_that_waited_in_the_queue_says_it_as_it_begins(hub):
    said = []
    hub.who = 401
    uploads = Uploads(RUN, "hf_token", lambda *words: said.append(words))
    uploads.check_in_background()
    uploads.close()
    assert [level for _, level, _ in said] == ["warning"] and "token" in said[0][0]
