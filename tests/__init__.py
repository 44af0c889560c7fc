"""The tests of unplugd: unit (pure and quick), integration (real neighbours), lab (the fixtures that run those)."""
