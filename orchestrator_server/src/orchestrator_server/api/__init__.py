"""1, upload; 6, download; and all else that portals ask: parse, one step, serialise."""
