#!/usr/bin/python3
"""Talks to a boot-sector guest over its serial line: talk.py [--timeout S] SOCKET COMMAND...

Prints one answer a line. The command `ready` waits until the guest is up. Status 3: no answer in time.
"""

import socket
import sys
import time

arguments = sys.argv[1:]
timeout = 60.0
if arguments[0] == "--timeout":
    timeout = float(arguments[1])
    arguments = arguments[2:]
line = socket.socket(socket.AF_UNIX)
line.settimeout(timeout)
deadline = time.monotonic() + timeout
while True:
    try:
        line.connect(arguments[0])
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
received = b""


def answer() -> str:
    global received
    while b"\n" not in received:
        data = line.recv(4096)
        if not data:
            sys.exit(4)
        received += data
    first, received = received.split(b"\n", 1)
    return first.decode("latin-1").strip()


try:
    for command in arguments[1:]:
        if command == "ready":
            while "monitor ready" not in answer():
                pass
            print("ready", flush=True)
        else:
            line.sendall(command.encode() + b"\n")
            print(answer(), flush=True)
except TimeoutError:
    print("no answer", flush=True)
    sys.exit(3)
