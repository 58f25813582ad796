"""Continuous batching: from requests to step plans, and from sampled tokens to outputs."""
