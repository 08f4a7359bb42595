"""Clients of the original, seen as clients of ours: all that the server knows of its wire."""
