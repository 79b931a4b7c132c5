"""The generated parts of the documentation, one module each; ``python -m docs.generate.zoo`` prints one as Markdown."""
