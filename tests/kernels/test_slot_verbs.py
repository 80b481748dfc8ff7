"""The verbs over slot tables, each against its formula for one row at a time."""
