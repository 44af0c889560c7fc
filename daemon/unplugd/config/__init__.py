"""The configuration: which keys there are (keys.py), what the files say (load.py), and `[attach]` (attach.py)."""
