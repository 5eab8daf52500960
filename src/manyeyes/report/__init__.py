"""What a run leaves to be read: the event log, tables, curves, one HTML page, and the view while it runs."""
