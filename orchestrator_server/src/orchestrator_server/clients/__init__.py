"""The only HTTP towards clients: who they are (pool.py), and how to talk to one (endpoint.py)."""
