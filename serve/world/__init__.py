"""The control plane between the processes of one service: who belongs to it, and what all run."""
