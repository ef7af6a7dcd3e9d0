"""A key holder as a process to be killed: it asks for products for ever, and prepares what it needs.

python -m tests.support.key_holder_loop SOCKET BURN_LOG TENANT ADAPTER SITE SEED [before:N | after:N]

With the last one it kills itself before or after its Nth burn.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import numpy as np

from tensafe_gpu.helora.burned import BurnLog
from tensafe_gpu.helora.connection import Timeouts, Wanted, unix_connector
from tensafe_gpu.helora.key_holder import RemoteKeyHolder
from tensafe_gpu.helora.ports import HeUnavailable
from tests.support.killing_ports import Killer


def main() -> None:
    """Until it is killed; an adapter holder that is not there is asked again."""
    socket, log, tenant, adapter, site, seed, *last = sys.argv[1:]
    draw, burn_log = random.Random(int(seed)), BurnLog(Path(log))
    for moment, _, burn in (one.partition(":") for one in last):
        burn_log = Killer(int(burn), after=moment == "after").wrapped(burn_log, {"burn"})
    private: RemoteKeyHolder | None = None
    while True:
        try:
            if private is None:
                connector = unix_connector(Path(socket), 1)
                private = RemoteKeyHolder(connector, Wanted(tenant, adapter), burn_log, Timeouts(1, 2, 10))
            private.connect_again()
            width, count = private.info().site(site).d_in, draw.randrange(1, 90)
            if private.prepared()[site] < count:
                private.prepare(site)
            private.products([(site, np.ones((count, width), dtype=np.float32))])
        except HeUnavailable:
            time.sleep(0.02)


if __name__ == "__main__":
    main()
