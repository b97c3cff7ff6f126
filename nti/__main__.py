"""`python -m nti` is the command line."""

import sys

from nti.cli import main

sys.exit(main())
