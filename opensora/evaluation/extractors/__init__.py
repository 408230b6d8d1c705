"""Networks that turn a video into features, registered in EXTRACTORS, for metrics/frechet.py."""
