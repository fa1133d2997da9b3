"""bnas.passes."""
if __name__ != "bnas.passes":
    raise ImportError(f"import 'bnas.passes', not {__name__!r}: a second copy would register every rule twice")
