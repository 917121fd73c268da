"""The desk: the web page on a client's own machine where experts give labels."""
