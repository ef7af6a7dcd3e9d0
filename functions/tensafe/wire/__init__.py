"""The Tinker wire format: between raw HTTP bodies and the contracts. Imports contracts alone."""
