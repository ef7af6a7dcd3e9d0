"""Spans of the work on an operation, for whoever runs a collector: off unless an endpoint is given."""
