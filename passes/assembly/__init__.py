"""From a choice to a module: select the kept part of each tensor, and build the graph."""
