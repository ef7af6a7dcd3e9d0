"""What the owner of the data runs beside the Tinker SDK: standard library and numpy, over HTTPS."""
