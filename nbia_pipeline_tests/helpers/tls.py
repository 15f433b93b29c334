"""An archive behind TLS."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from nbia_pipeline_tests.helpers.faults import always, answer


@contextlib.contextmanager
def serving_tls(certificate: tuple[Path, Path], host: str) -> Iterator[str]:
    app = always(answer(200, b"[]"))
    server = uvicorn.Server(
        uvicorn.Config(app, ssl_certfile=certificate[0], ssl_keyfile=certificate[1], log_level="critical")
    )
    with socket.socket() as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no address {host}")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.005)
            yield f"https://{host}:{listener.getsockname()[1]}/nbia-api"
        finally:
            server.should_exit = True
            thread.join()
