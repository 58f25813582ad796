"""Measuring a server under load as its users see it: workloads, sending, figures, report."""
