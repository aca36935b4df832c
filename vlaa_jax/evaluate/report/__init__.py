"""What a run of the evaluation is shown as: tables, CSV, JSON and a page with the wrong answers."""
