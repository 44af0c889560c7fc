"""`python -m unplugd.attach` is `unplugd-attach`."""

import sys

from unplugd.attach.cli import main

sys.exit(main())
