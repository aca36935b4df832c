"""What can be trained on, decided in one place."""
