"""Algorithms of search: asked for candidates, told what came of them."""
