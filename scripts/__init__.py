"""What `.ci/run` and contributors call, and how the embedded reasoner was made."""
