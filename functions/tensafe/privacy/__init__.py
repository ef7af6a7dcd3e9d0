"""Differential privacy: the mechanism, its noise, the accountant and the durable ledger."""
