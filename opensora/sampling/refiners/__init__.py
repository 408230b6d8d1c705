"""Components of REFINERS, which rewrite prompts; see base.py."""
