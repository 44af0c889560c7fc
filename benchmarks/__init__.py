"""How fast unplugd is: measured, never asserted."""
