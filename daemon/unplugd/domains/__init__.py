"""Guest domains: which there are (follow.py), what xenstore says of each (nodes.py), and one of them (domain.py)."""
