"""The functions that Lambda runs: thin handlers over the same application and rooms as everywhere.

While Lambda imports one, and until its handler is made (`entry.py`), the garbage collector rests: what is
imported stays, and looking through it again and again takes an eighth of a start.
"""

from __future__ import annotations

import gc
import os
from typing import Final

RUNTIME: Final = "AWS_LAMBDA_RUNTIME_API"
"""Where the runtime asks for events; set in a function's process and nowhere else."""

if RUNTIME in os.environ:
    gc.disable()
