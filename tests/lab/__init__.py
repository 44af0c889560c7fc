"""The lab: fixtures that run the daemon's real neighbours on a machine without Xen."""
