"""Where the guests' lines and unplugd's own records go: the journal, files, standard error.

Each module is one kind of sink. A sink never makes the event loop wait: it takes an entry at once or says that it
cannot now, and keeps nothing that the caller believes to be stored. Which entry goes to which sink, what is kept until
a sink takes it, and what is dropped when it takes nothing for too long, is decided by the caller, never here.
"""
