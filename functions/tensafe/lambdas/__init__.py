"""The functions that Lambda runs: thin handlers over the same application and rooms as everywhere."""
