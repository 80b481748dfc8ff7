"""What tenants used of which adapters: counted exactly, kept durably, read by hour or day."""
