"""Rent a GPU, serve an open model on it, and measure how many customers it carries."""
