"""Durable requests: written down before they are answered, gone on with after a crash."""
