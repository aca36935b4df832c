"""Where records come from: a file for each form, and one table."""
