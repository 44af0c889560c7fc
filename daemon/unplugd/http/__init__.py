"""HTTP on TCP and on the control socket. The content comes from pages.py, landing.py and exposition.py.

front.py and sockets.py are loaded at start; the other modules are loaded when the first client connects.
"""
