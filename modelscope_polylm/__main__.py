"""`python -m modelscope_polylm`: the command line."""

from modelscope_polylm.app.cli import main

if __name__ == "__main__":
    main()
