"""Numbers about the service for whoever watches it: a port, and an adapter for each place that takes them."""
