"""Small helpers that know neither methods nor detectors."""
