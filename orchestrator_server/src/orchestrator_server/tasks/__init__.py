"""3, send; 5, get; 7, clean: what goes on in the background."""
