"""The documentation: ``make docs`` builds it; ``docs.generate`` holds the scripts of its generated parts."""
