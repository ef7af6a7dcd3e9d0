"""TenSafe GPU tasks: what runs beside an accelerator (or a CPU) and imports torch."""
