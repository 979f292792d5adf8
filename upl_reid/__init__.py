"""Uncertainty-calibrated pseudo-labels for unsupervised domain-adaptive person re-identification.

Folders, each of which imports only from those before it: `data` (images and identities), `components` (the parts of
the methods), `evaluation` (retrieval, re-ranking, calibration), `training` (the loop), `methods` (UPL-ReID and the
others), `experiments` (stored runs and reports), `deployment` (embed and search). `components` and `evaluation` are
usable alone.
"""
__version__ = "0.1.0"
