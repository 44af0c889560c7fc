#!/usr/bin/python3
"""Asks unplugd's control socket: control.py PATH."""

import http.client
import socket
import sys


class Control(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/unplugd/control.sock")


control = Control("localhost", timeout=60)
control.request("GET", sys.argv[1])
print(control.getresponse().read().decode())
