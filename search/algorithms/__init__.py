"""Search algorithms: each proposes candidates and learns from their evaluations."""
