"""What `opensora evaluate CONFIG` measures: one metric per file, registered in METRICS; see evaluation/metric.py."""
