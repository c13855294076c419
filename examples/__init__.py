"""Real training, each with one command."""
