"""Settings shared by the whole suite."""
