#!/usr/bin/python3
"""Asks QEMU by QMP: qmp.py DOMID COMMAND [ARGUMENTS as JSON].  Prints the answer as JSON."""

import json
import socket
import sys

line = socket.socket(socket.AF_UNIX)
line.settimeout(30)
line.connect(f"/var/run/xen/qmp-libxl-{sys.argv[1]}")
stream = line.makefile("rw")
stream.readline()


def execute(command: str, arguments: str = "{}") -> object:
    stream.write(json.dumps({"execute": command, "arguments": json.loads(arguments)}) + "\n")
    stream.flush()
    while True:
        answer = json.loads(stream.readline())
        if "error" in answer:
            sys.exit(f"{command}: {answer['error']['desc']}")
        if "return" in answer:
            return answer["return"]


execute("qmp_capabilities")
print(json.dumps(execute(*sys.argv[2:])))
