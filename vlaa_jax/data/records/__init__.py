"""Records as JSON holds them: parsed, refused, guessed at."""
