"""4, run: where payloads run. base.py is the interface; each other module is one way."""
