"""The Tinker wire protocol (SDK 0.38.0) as thin translations onto operations."""
