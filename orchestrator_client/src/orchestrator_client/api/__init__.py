"""What servers ask of the client: parse, one step, serialise."""
