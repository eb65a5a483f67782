"""`python -m unif2ace.cli`: the same as the command `unif2ace`; as `torchrun -m unif2ace.cli train` starts it."""

import os
import sys

from . import main


code = main()
if int(os.environ.get("WORLD_SIZE", "1")) > 1:
    import atexit

    # all is written; the interpreter's own end now and then aborts a process whose gloo threads still live
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
