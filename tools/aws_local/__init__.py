"""The service as AWS would run it, on one machine: `make aws-local`."""
