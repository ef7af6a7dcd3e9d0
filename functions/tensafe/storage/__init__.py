"""Durable storage behind four small ports; see `ports`."""
