"""From prompts to video files: requests, conditions, generate, write, run."""
