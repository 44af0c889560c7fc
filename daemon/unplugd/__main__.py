"""`python3 -m unplugd` is `unplugd`."""

import sys

from unplugd.cli import main

sys.exit(main())
