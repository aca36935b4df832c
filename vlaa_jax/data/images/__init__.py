"""Images: files, the processor, and the planner of the vision buffer."""
