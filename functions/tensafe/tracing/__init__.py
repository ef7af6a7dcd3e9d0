"""Spans: of the work on an operation, for whoever runs a collector; of a function's event, for X-Ray.

Off unless an endpoint is given, or Lambda says where X-Ray's daemon is.
"""
