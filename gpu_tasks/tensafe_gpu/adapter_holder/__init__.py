"""The adapter holder: a process that owns private adapters and answers key holders, and sees no text."""
