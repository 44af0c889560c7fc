"""`python3 -m unplugd` is `unplugd`."""

from unplugd.program import main

main()
