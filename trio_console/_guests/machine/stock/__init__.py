"""What machines are made of, made or got once and kept."""
