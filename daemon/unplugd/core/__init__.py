"""The protocol itself, without I/O and without a clock.

Everything here is a function of the bytes and times that it is given. Nothing here may import asyncio, socket,
time, os or a part of unplugd outside this package (tests/unit/test_purity.py keeps it so).
"""
