"""The native v1 face: JSON over the same operations."""
