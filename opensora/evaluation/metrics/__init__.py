"""The measures of `opensora evaluate CONFIG`: one metric per file, registered in METRICS; see evaluation/metric.py."""
