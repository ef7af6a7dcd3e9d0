"""Envelope encryption: one data key per scope, wrapped by the key ring; deleting it erases the scope."""
