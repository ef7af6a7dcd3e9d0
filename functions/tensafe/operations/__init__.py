"""The protocol between the edge and the GPU tasks: streams, the operation log, leases, dead letters."""
