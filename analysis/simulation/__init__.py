"""Replays of recorded learning curves through our searcher, samplers and trial schedulers, without training."""
