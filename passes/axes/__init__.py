"""Axis types: the composition of every axis of every tensor, and the equations between axes."""
