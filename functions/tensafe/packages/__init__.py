"""Adapters as files: bundles of a few named files, and encryption to a recipient's own key."""
