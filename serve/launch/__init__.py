"""Starting a service of several processes."""
