"""Unlearning: forget term x retain term x balance x smoother x scope, and a rate."""
