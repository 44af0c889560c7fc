"""The blacklist in xenstore: the verdict on a build number (verdicts.py), lookups that guests share (lookups.py)."""
