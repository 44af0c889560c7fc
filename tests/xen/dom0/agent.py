#!/usr/bin/python3
"""Runs commands for the test, in dom0: requests and replies as lines of JSON on a virtio serial port.

{"id": 1, "command": "xl list", "timeout": 60} -> {"id": 1, "status": 0, "out": "...", "err": "..."}
{"id": 2, "path": "/root/x", "content": "base64", "mode": 420} -> {"id": 2, "status": 0}
"""

import base64
import json
import os
import subprocess
import threading
import time
from typing import Any

PORT = "/dev/virtio-ports/agent"
lock = threading.Lock()


def reply(port: int, **answer: object) -> None:
    data = json.dumps(answer).encode() + b"\n"
    with lock:
        while data:
            data = data[os.write(port, data):]


def carry_out(port: int, request: dict[str, Any]) -> None:
    number = request.get("id")
    try:
        if "command" in request:
            process = subprocess.Popen(
                ["/bin/bash", "-c", request["command"]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, start_new_session=True, cwd="/root",
            )  # fmt: skip
            try:
                out, err = process.communicate(timeout=request.get("timeout", 120))
                status = process.returncode
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                out, err = process.communicate()
                status = 124
            texts = {"out": out.decode("utf-8", "replace"), "err": err.decode("utf-8", "replace")}
            reply(port, id=number, status=status, **texts)
        else:
            with open(request["path"], "ab" if request.get("append") else "wb") as file:
                file.write(base64.b64decode(request["content"]))
            os.chmod(request["path"], request.get("mode", 0o644))
            reply(port, id=number, status=0)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to know
        reply(port, id=number, status=255, out="", err=repr(error))


def main() -> None:
    while not os.path.exists(PORT):
        time.sleep(0.1)
    port = os.open(PORT, os.O_RDWR)
    rest = b""
    while True:
        try:
            data = os.read(port, 65536)
        except OSError:
            data = b""
        if not data:  # nobody is at the other end
            time.sleep(0.1)
            continue
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                request = json.loads(line)
            except ValueError:  # the other end gave up in the middle of a line
                continue
            threading.Thread(target=carry_out, args=(port, request), daemon=True).start()


main()
