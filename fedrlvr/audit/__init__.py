"""Attacks on a run that has been trained, by whoever holds its training problems: membership and canaries."""
