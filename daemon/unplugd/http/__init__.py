"""HTTP, by TCP and on the control socket: what it says is pages.py's, landing.py's and exposition.py's.

front.py and sockets.py are there from the start on; all else is loaded when the first client asks.
"""
