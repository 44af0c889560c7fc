"""Guests to try unplugd with: `python3 -m unplugd.simulator` plays a driver (cli.py), and the demo is demo.py."""
