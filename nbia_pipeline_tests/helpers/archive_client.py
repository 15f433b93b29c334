"""A running embedded archive, as a test of it calls it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import requests
from starlette.applications import Starlette

from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline_tests.helpers.tiny import Clock


@dataclass
class ArchiveClient:
    """A running archive, as a test calls it."""

    url: str
    app: Starlette
    clock: Clock
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def control(self) -> Operations:
        operations: Operations = self.app.state.archive.control
        return operations

    def token(self, username: str = "nbia_guest", password: str = "") -> str:
        answer = self.session.post(
            f"{self.url}/oauth/token",
            data={"grant_type": "password", "username": username, "password": password},
        )
        return str(answer.json()["access_token"])

    def get(self, path: str, authorization: str | None = "Bearer undefined", **parameters: Any) -> requests.Response:
        headers = {} if authorization is None else {"Authorization": authorization}
        return self.session.get(f"{self.url}/services/{path}", params=parameters, headers=headers, timeout=30)

    def post(self, path: str, data: Any, authorization: str | None = "Bearer undefined") -> requests.Response:
        headers = {} if authorization is None else {"Authorization": authorization}
        return self.session.post(f"{self.url}/services/{path}", data=data, headers=headers, timeout=30)

    def column(self, path: str, key: str, **parameters: Any) -> list[Any]:
        """Return one key of every row; an empty answer has no rows."""
        answer = self.get(path, **parameters)
        assert answer.status_code == 200, answer.text
        return [row.get(key) for row in answer.json()] if answer.content else []
