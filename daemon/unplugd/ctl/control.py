"""The client of the daemon's control socket: its path, one request at a time, and the process behind it.

It writes HTTP/1.0 itself, because importing http.client takes longer than the daemon's answer. The end of the
connection ends the answer; an answer that was cut is not valid JSON.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

from unplugd.config.files import document, paths
from unplugd.ctl.failure import NOT_RUNNING, USAGE, Failure
from unplugd.errors import ConfigError

DEADLINE = 15.0
"""Seconds that the daemon has for an answer."""

DEFAULT_RUNTIME = "/run/unplugd"
_LONGEST_ANSWER = 256 << 20

START_HINT = "see why:  systemctl status unplugd;  journalctl -u unplugd -n 20\nstart it: systemctl start unplugd"


def runtime_directory(config: str | None) -> str:
    """`runtime_dir` of the daemon's configuration; other keys are not checked.

    unplugd.config.load checks all keys, but takes five times as long to import. Raises Failure.
    """
    found = DEFAULT_RUNTIME
    try:
        for path in paths(config):
            value = document(path).get("runtime_dir", found)
            found = value if isinstance(value, str) else found
    except ConfigError as error:
        raise Failure(USAGE, str(error),
                      "details: unplugctl config check;  with --socket PATH it is not needed") from None
    return found


class Control:
    """The control socket at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, page: str) -> tuple[int, bytes]:
        """GET a page: status and body. Raises Failure if there is no answer."""
        with self._connect() as connection:
            try:
                connection.sendall(f"GET {page} HTTP/1.0\r\nHost: unplugd\r\nAccept: */*\r\n\r\n".encode())
                answer = bytearray()
                while piece := connection.recv(1 << 18):
                    answer += piece
                    if len(answer) > _LONGEST_ANSWER:
                        break
            except TimeoutError:
                raise Failure(NOT_RUNNING, f"unplugd does not answer within {DEADLINE:.0f} s ({self.path})",
                              START_HINT) from None
            except OSError as error:
                raise Failure(NOT_RUNNING, f"unplugd ended the connection: {error.strerror} ({self.path})",
                              START_HINT) from None
        head, _, body = bytes(answer).partition(b"\r\n\r\n")
        words = head.split(None, 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise Failure(NOT_RUNNING, f"another program answers at {self.path}, not unplugd", START_HINT)
        return int(words[1]), body

    def json(self, page: str) -> Any:
        """The JSON of an API page; None if the status is 404. Raises Failure."""
        status, body = self.get(page)
        if status == 404:
            return None
        try:
            decoded = json.loads(body)
        except ValueError:
            decoded = None
        if status != 200 or decoded is None:
            raise Failure(NOT_RUNNING, f"unplugd answers {page} with status {status} and {len(body)} bytes that"
                                       " unplugctl does not understand",
                          "do unplugd and unplugctl have the same version?  unplugctl status")
        return decoded

    def domains(self) -> list[dict[str, Any]]:
        """All domains from the API, sorted by domid."""
        found = self.json("/api/v1/domains")
        return list(found["domains"]) if found else []

    def peer(self) -> tuple[int, int]:
        """Process id and uid of the daemon; the pid is 0 if this process cannot see it. Raises Failure."""
        with self._connect() as connection:
            return _credentials(connection)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(DEADLINE)
        try:
            connection.connect(self.path)
            if os.geteuid() not in (0, _credentials(connection)[1]):   # unplugd would close it without a word
                raise PermissionError
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise Failure(NOT_RUNNING, f"unplugd does not run: no process listens at {self.path}", START_HINT) from None
        except PermissionError:
            connection.close()
            raise Failure(NOT_RUNNING, f"{self.path}: permission denied",
                          "only root may use unplugd's control socket: use sudo") from None
        except OSError as error:
            connection.close()
            raise Failure(NOT_RUNNING, f"{self.path}: {error.strerror or error}", START_HINT) from None
        return connection


def _credentials(connection: socket.socket) -> tuple[int, int]:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid
