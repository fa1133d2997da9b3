"""The winners of a run: chosen by a search, chosen again, fine-tuned."""
