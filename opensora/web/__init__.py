"""Pages in the browser: the server that they share, and the page of `opensora web`."""
