"""Tests against real neighbours: xenstored, journald, systemd, Prometheus."""
