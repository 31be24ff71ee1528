"""``python -m meshray.cli`` is ``meshray``."""

import sys

from meshray.cli.main import main

sys.exit(main())
