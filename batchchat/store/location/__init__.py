"""Where an output's files are: the port, and a folder as its carrier."""
