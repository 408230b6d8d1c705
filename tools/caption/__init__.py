"""Captions of clips: by a vision-language model, by a server, from measured columns, or from files next to the clips."""
