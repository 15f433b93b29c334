"""Servers below HTTP: what they send is up to the test, byte by byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def answering_with(deed: Callable[[socket.socket], None]) -> Iterator[int]:
    """Accept connections and do something to each; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if stop.is_set():
                        return
                    deed(connection)

        stop = threading.Event()
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield port
        finally:
            stop.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


def answering_bytes(answer: Callable[[str], bytes]) -> contextlib.AbstractContextManager[int]:
    """Answer each request with bytes that depend on its path, and close the connection; yields the port."""

    def deed(connection: socket.socket) -> None:
        file = connection.makefile("rb")
        words = file.readline().decode("latin-1").split(" ")
        length = 0
        while (line := file.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        file.read(length)
        with contextlib.suppress(OSError):  # the client may have seen enough
            if len(words) > 1:
                connection.sendall(answer(words[1]))

    return answering_with(deed)
