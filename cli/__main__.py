"""`python -m unif2ace.cli`: the same as the command `unif2ace`."""

import sys

from . import main


sys.exit(main())
