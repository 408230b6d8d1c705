"""Lists of files and captions become manifests."""
