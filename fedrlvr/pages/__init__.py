"""The web pages of fedrlvr: the guard before each request, the server, and what all pages share."""
