"""A page to look through the clips of a manifest, to mark them and to correct their captions."""
