"""How a text becomes a verdict: the rules of VLMEvalKit by date, with nothing that runs the text."""
