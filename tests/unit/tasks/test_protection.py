"""Scale-in protection, asked of an agent that is a real HTTP server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tensafe_gpu.protection import EcsProtection, ProtectionKeeper, protected_while

pytestmark = pytest.mark.sockets


class Agent:
    """As ECS's: it grants what it is asked, unless it is told how to fail."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: list[tuple[int, object]] = []
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                agent.asked.append((self.path, body))
                granted = {"protection": {"ProtectionEnabled": body["ProtectionEnabled"], "TaskArn": "arn"}}
                status, answer = agent.answers.pop(0) if agent.answers else (200, granted)
                raw = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}/api/abc"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.server.shutdown()
    agent.server.server_close()


class Task:
    """Whether it works, and a clock."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.works, self.now_s = agent, False, 1000.0
        self.keeper = ProtectionKeeper(EcsProtection(agent.uri), lambda: self.works, clock=lambda: self.now_s)

    def after(self, seconds: float, *, works: bool) -> list[bool]:
        """What the agent was asked for in the look `seconds` later."""
        self.now_s += seconds
        self.works = works
        before = len(self.agent.asked)
        self.keeper.look()
        return [body["ProtectionEnabled"] for _, body in self.agent.asked[before:]]


@pytest.fixture
def task(agent: Agent) -> Task:
    return Task(agent)


def test_a_task_is_protected_while_it_works_and_no_longer(task: Task) -> None:
    assert task.after(0, works=False) == []
    assert task.after(1, works=True) == [True]
    assert task.agent.asked[0] == (
        "/api/abc/task-protection/v1/state",
        {"ProtectionEnabled": True, "ExpiresInMinutes": 10},
    )
    assert task.after(1, works=True) == []
    assert task.after(4, works=False) == []  # between two operations
    assert task.after(2, works=False) == [False]
    assert task.after(100, works=False) == []


def test_it_is_prolonged_before_it_ends(task: Task) -> None:
    task.after(0, works=True)
    assert [task.after(60, works=True) for _ in range(8)] == [[], [], [], [True], [], [], [], [True]]


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"error": {"Code": "ServerException"}}),
        (200, {"failure": {"Reason": "TASK_NOT_VALID"}}),
        (200, {"protection": {"ProtectionEnabled": False}}),
        (200, "secret"),
    ],
)
def test_an_agent_that_does_not_grant_it_is_asked_again_and_stops_nothing(
    task: Task, answer: tuple[int, object], caplog: pytest.LogCaptureFixture
) -> None:
    task.agent.answers.append(answer)
    assert task.after(0, works=True) == [True]
    assert "not changed" in caplog.text
    assert "secret" not in caplog.text
    assert task.after(1, works=True) == []
    assert task.after(10, works=True) == [True]
    assert task.after(1, works=True) == []


def test_an_agent_that_is_not_there_stops_nothing(task: Task) -> None:
    task.agent.server.shutdown()
    task.agent.server.server_close()
    assert task.after(0, works=True) == []


def test_it_is_given_up_at_the_end(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECS_AGENT_URI", agent.uri)
    with protected_while(lambda: True):
        deadline = time.monotonic() + 10
        while not agent.asked and time.monotonic() < deadline:
            time.sleep(0.02)
    assert [body["ProtectionEnabled"] for _, body in agent.asked] == [True, False]


def test_without_an_agent_nothing_is_asked(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECS_AGENT_URI", raising=False)
    with protected_while(lambda: True):
        pass
    assert agent.asked == []
    with pytest.raises(ValueError, match="no http address"):
        EcsProtection("file:///etc/passwd")
