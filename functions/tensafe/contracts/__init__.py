"""What crosses a boundary: models, enums and errors. Imports nothing else of TenSafe."""
