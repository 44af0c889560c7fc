"""`python3 -m unplugd.simulator` simulates a guest's PV driver."""

import sys

from unplugd.simulator.cli import main

sys.exit(main())
