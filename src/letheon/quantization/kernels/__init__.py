"""Loops that have to be fast, one idea a file, each in several equal ways: for any device, and compiled."""
