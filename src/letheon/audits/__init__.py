"""Audits: probes under conditions, against a control, and a verdict by a written rule."""
