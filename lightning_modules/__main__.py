"""``python -m lightning_modules`` is the command ``lstm-fused``."""

import sys

from lightning_modules.cli import main

sys.exit(main())
