"""Several processes, one mesh: what those that follow do, and how all know that they are alike."""
