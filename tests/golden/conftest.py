"""The scripts here run in environments of their own (README.md), so pytest must not import them."""

collect_ignore_glob = ["make_*.py"]
