"""Rent a GPU, serve an open model on it, and measure how many customers it carries."""

import sys

from helpers._moved import Finder

sys.meta_path.insert(0, Finder)
