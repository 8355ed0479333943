"""``python -m schuss``."""

import sys

from schuss.cli import main

sys.exit(main())
