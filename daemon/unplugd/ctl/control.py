"""The daemon's control socket: where it is, one question at a time, and who listens there.

HTTP/1.0 by hand, for http.client takes longer to import than the daemon to answer: the answer ends with the
connection, and one that was cut short is no JSON.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import tomllib
from typing import Any

from unplugd.ctl.failure import NOT_RUNNING, USAGE, Failure

DEADLINE = 15.0
"""Seconds that the daemon has for an answer."""

DEFAULT_FILE = "/etc/unplugd/unplugd.toml"
DEFAULT_DROP_INS = "/etc/unplugd/conf.d"
DEFAULT_RUNTIME = "/run/unplugd"
_LONGEST_ANSWER = 256 << 20

START_HINT = "see why:  systemctl status unplugd;  journalctl -u unplugd -n 20\nstart it: systemctl start unplugd"


def runtime_directory(config: str | None) -> str:
    """`runtime_dir` of the configuration that the daemon reads; nothing else of it is looked at.

    unplugd.config.load knows all of it and takes five times as long to import. Raises Failure.
    """
    main, drop_ins = (config, config + ".d") if config else (DEFAULT_FILE, DEFAULT_DROP_INS)
    try:
        names = sorted(name for name in os.listdir(drop_ins) if name.endswith(".toml"))
    except OSError:
        names = []
    found = DEFAULT_RUNTIME
    for path in [main, *(os.path.join(drop_ins, name) for name in names)]:
        try:
            with open(path, "rb") as stream:
                value = tomllib.load(stream).get("runtime_dir", found)
        except FileNotFoundError:
            if config and path == main:
                raise Failure(USAGE, f"{path}: no such file",
                              "name unplugd's own file, or leave --config out") from None
            continue
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else f"is not TOML: {error}"
            raise Failure(USAGE, f"{path}: {why}",
                          "unplugctl config check  says more; --socket PATH asks a daemon without it") from None
        found = value if isinstance(value, str) else found
    return found


class Control:
    """The control socket at `path`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, page: str) -> tuple[int, bytes]:
        """GET a page: status and body. Raises Failure where nobody answers."""
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
            raise Failure(NOT_RUNNING, f"what answers at {self.path} is not unplugd", START_HINT)
        return int(words[1]), body

    def json(self, page: str) -> Any:
        """What a page of the API says; None where it says that there is no such thing. Raises Failure."""
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
                          "are unplugd and unplugctl of one version?  unplugctl status")
        return decoded

    def domains(self) -> list[dict[str, Any]]:
        """All domains as the API has them, by domid."""
        found = self.json("/api/v1/domains")
        return list(found["domains"]) if found else []

    def peer(self) -> tuple[int, int]:
        """Process id and uid of the daemon; the pid is 0 where it is not to be seen from here. Raises Failure."""
        with self._connect() as connection:
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", raw)
        return pid, uid

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(DEADLINE)
        try:
            connection.connect(self.path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise Failure(NOT_RUNNING, f"unplugd does not run: nobody answers at {self.path}", START_HINT) from None
        except PermissionError:
            connection.close()
            raise Failure(NOT_RUNNING, f"{self.path}: permission denied",
                          "unplugd's control socket is root's: use sudo") from None
        except OSError as error:
            connection.close()
            raise Failure(NOT_RUNNING, f"{self.path}: {error.strerror or error}", START_HINT) from None
        return connection
