"""The JSON bodies that the Tinker SDK sends, one module per resource.

`parse_json(SomeBody, raw, max_bytes=...)` gives a body; its `to_...` method gives contract objects and
raises InvalidRequest or Unsupported with the path of the field.
"""
