#!/usr/bin/python3
"""Asks QEMU's human monitor: hmp.py DOMID COMMAND...  Prints the answers."""

import json
import socket
import sys

line = socket.socket(socket.AF_UNIX)
line.settimeout(30)
line.connect(f"/var/run/xen/qmp-libxl-{sys.argv[1]}")
stream = line.makefile("rw")
stream.readline()


def execute(**command: object) -> object:
    stream.write(json.dumps(command) + "\n")
    stream.flush()
    while True:
        answer = json.loads(stream.readline())
        if "return" in answer or "error" in answer:
            return answer.get("return", answer)


execute(execute="qmp_capabilities")
for command in sys.argv[2:]:
    print(str(execute(execute="human-monitor-command", arguments={"command-line": command})).replace("\r", ""))
