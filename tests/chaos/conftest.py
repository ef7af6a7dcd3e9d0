"""The trainer's fixtures, for tests that end its processes at every place."""

from tests.unit.trainer_worker.conftest import _same_noise, base, new_rig

__all__ = ["_same_noise", "base", "new_rig"]
