"""Who changed what: one line an event, chained by checksums, in a file that only grows."""
