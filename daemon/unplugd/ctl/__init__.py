"""`unplugctl`, the administrator's tool. It reads from unplugd, from xenstore and from the journal.

Nothing here is part of the daemon. Only the code that talks to xenstore runs an event loop. To start quickly, the
modules of a command are imported when the command runs, and the common modules import little. `cli` has the arguments;
`guests`, `top`, `journal`, `blacklist`, `configuration` and `status` are the commands; `control` is the client of the
daemon's socket; `show` prints text safely.
"""
