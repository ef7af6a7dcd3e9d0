"""One machine, one command: settings, composition root, supervisor."""
