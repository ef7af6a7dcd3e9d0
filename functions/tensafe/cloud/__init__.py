"""The composition root of AWS: settings from the environment, and the adapters that they name."""
