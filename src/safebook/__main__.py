"""`python -m safebook` is the command `safebook`."""

import sys

from safebook.cli import main

sys.exit(main())
