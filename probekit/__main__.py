"""``python -m probekit`` and ``torchrun -m probekit``."""

from probekit.cli.main import main

if __name__ == "__main__":
    main()
