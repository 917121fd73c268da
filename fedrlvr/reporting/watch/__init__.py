"""The page of `fedrlvr watch`: running and finished runs, from the files in their directories."""
