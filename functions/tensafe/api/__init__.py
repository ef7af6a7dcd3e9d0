"""The HTTPS edge: thin translations of each face onto the same operations."""
