"""The command line, `tensafe`: commands parse, call the library and print; nothing else."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from tensafe.cli.app import app

    app()
