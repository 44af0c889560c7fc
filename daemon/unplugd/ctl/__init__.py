"""`unplugctl`, the administrator's tool: what it asks of unplugd, of xenstore and of the journal, and how it shows it.

Nothing in here is part of the daemon, and nothing here runs an event loop but what must speak to xenstore. Modules of a
command are imported when that command runs, and what all need is kept to the quickly imported: `unplugctl list` is
typed all day. `cli` has the arguments, `guests`, `top`, `journal`, `blacklist`, `configuration` and `status` the
commands, `control` the daemon's socket, `show` how text gets onto a terminal.
"""
