"""One rewrite per file: ``apply(model) -> Model``, which leaves alone what it does not know."""
