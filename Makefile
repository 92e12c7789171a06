lock:
	.venv/bin/uv pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.12 --all-extras --group dev pyproject.toml -o requirements.lock
