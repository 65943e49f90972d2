"""Small helpers that do not depend on methods or detectors."""
