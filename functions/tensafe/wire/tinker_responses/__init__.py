"""The JSON answers that the Tinker SDK validates, with exactly its field names.

`to_json(response)` gives the bytes. The SDK parses with a strict JSON reader: no NaN, no Infinity.
"""
