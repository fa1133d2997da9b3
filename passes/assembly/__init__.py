"""From a choice to a module: which part of which tensor, and the graph that it runs in."""
