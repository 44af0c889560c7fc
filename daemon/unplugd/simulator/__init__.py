"""Simulated guests: `python3 -m unplugd.simulator` simulates a driver (cli.py); demo.py is the demo."""
