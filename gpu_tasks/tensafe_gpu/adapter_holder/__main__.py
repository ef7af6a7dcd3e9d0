"""`python -m tensafe_gpu.adapter_holder`: publish private adapters, and serve them to key holders."""

from __future__ import annotations

import os

# Before numpy is imported: one thread per product unless the operator chose; many small ones lose by more.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if __name__ == "__main__":
    from tensafe_gpu.adapter_holder.commands import main

    main()
