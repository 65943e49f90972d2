"""The command `python -m sklearn_g2d inspect`: from folders of photographs to a report."""
