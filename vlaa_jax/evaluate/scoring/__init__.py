"""How a text becomes a verdict: the rules of VLMEvalKit by date, and nothing runs the text."""
