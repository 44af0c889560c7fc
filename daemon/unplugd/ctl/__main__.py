"""`python3 -m unplugd.ctl` is `unplugctl`."""

import sys

from unplugd.ctl.cli import entry

sys.exit(entry())
