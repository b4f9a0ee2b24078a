"""Synthetic worlds whose safety is defined exactly, so that behaviour can be judged without a human or a model."""
