"""The sinks of guest lines and of unplugd's own records: the journal, files, standard error.

journal.py, files.py and stderr.py are the sinks. A sink never blocks the event loop: it accepts an entry at once, or
refuses it for now. It has no queue of its own. delivery.py decides which entry goes to which sink, which entries wait,
and which are dropped.
"""
