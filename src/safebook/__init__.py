"""Reproducibility companion to three papers on safety fine-tuning: the package that the notebooks share."""

__version__ = "0.1.0"
