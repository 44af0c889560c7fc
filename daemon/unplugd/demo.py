"""`python3 -m unplugd.demo` shows what unplugd does (simulator/demo.py)."""

import sys

from unplugd.simulator.demo import main

if __name__ == "__main__":
    sys.exit(main())
