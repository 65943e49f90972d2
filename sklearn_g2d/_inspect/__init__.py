"""What `python -m sklearn_g2d inspect` does: folders of photographs to verdicts and a page."""
