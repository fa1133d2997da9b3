"""Axis types: what every axis of every tensor is made of, and the equations between them."""
