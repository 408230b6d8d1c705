"""Components of SAFETY_FILTERS, which refuse prompts and videos; see base.py."""
