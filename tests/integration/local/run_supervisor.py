"""`run_supervisor DATA_DIR CHILDREN TIMINGS`: the real supervisor over stand-in children.

CHILDREN is JSON: [{"name", "behaviour", "queue"?}]. It is ready once every child has announced itself. A file
named `failing` in the data directory makes one look at readiness fail.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tensafe.contracts.errors import TensafeError, Unavailable
from tensafe.local.children import ChildSpec
from tensafe.local.composition import local_services, sqlite_items
from tensafe.local.deployment import inherited_environment
from tensafe.local.liveness import Watch
from tensafe.local.lock import DirectoryLock
from tensafe.local.logs import log_to_file
from tensafe.local.maintenance import Duty, Maintenance, local_duties
from tensafe.local.settings import LocalSettings
from tensafe.local.supervisor import Supervisor, Timings

ROOT = Path(__file__).resolve().parents[3]


class Lines:
    """Events as lines on standard output."""

    def note(self, text: str) -> None:
        sys.stdout.write(f"note {text!r}\n")
        sys.stdout.flush()

    def waiting(self, text: str) -> None:
        """Of no interest here."""

    def ready(self, url: str) -> None:
        sys.stdout.write(f"ready {url}\n")
        sys.stdout.flush()


def main(data_dir: str, children: str, timings: str) -> int:
    settings, folder = LocalSettings(data_dir=Path(data_dir)), Path(data_dir) / "announced"
    environment = {
        **inherited_environment(os.environ),
        **settings.as_environment(),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    specs = [
        ChildSpec(
            child["name"],
            (sys.executable, "-m", "tests.integration.local.stand_in", *child["behaviour"]),
            environment,
            child.get("queue"),
        )
        for child in json.loads(children)
    ]

    def announced() -> bool:
        failing = settings.data_dir / "failing"
        if failing.exists():
            failing.unlink()
            raise Unavailable("the store is full")
        names = [path.name for path in folder.glob("*")] if folder.exists() else []
        return all(any(name.startswith(spec.name) for name in names) for spec in specs)

    try:
        with DirectoryLock(settings.data_dir) as lock, local_services(settings) as services:
            log_to_file(settings.data_dir / "logs" / "supervisor.log", "supervisor", "INFO")
            watch = Watch(services, lambda: False, looks=3)
            duties = local_duties(services, sqlite_items(services), settings.data_dir / "logs")
            Supervisor(
                lock,
                services,
                specs,
                is_ready=announced,
                maintenance=Maintenance((*duties, Duty("liveness", 0.5, watch.look))),
                events=Lines(),
                url="http://127.0.0.1:1",
                hung=watch.hung,
                timings=Timings(**json.loads(timings)),
            ).run()
    except TensafeError as error:
        sys.stderr.write(error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
