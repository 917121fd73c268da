"""Contents of the messages between server and clients, with their checks."""
