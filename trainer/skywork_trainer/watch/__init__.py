"""Following a run of the cluster in the terminal: ask kubectl, say what it means, draw it."""
