"""``python -m sim``; one line says what to install if a package of the extras is missing."""

import sys

try:
    from sim.command_line import main
except ModuleNotFoundError as problem:
    package = str(problem.name).partition(".")[0]
    sys.exit(f"The package {package} is not installed: pip install -e '.[test,build]'")

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
