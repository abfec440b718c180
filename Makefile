.DEFAULT_GOAL := help
.PHONY: help up demo test faults check bench deploy lock clean venv

# make test answers for itself: no key, no address and no setting of the caller's.
ALONE := env -u ANTHROPIC_API_KEY -u ANTHROPIC_AUTH_TOKEN -u ANTHROPIC_BASE_URL -u OPENAI_API_KEY -u OPENAI_BASE_URL \
	-u ANTHROPIC_API_KEY_FILE -u OPENAI_API_KEY_FILE -u DATABASE_URL -u DATABASE_URL_FILE -u REDIS_URL -u REDIS_URL_FILE

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv:
	@PYTHON="$(PYTHON)" sh deploy/venv.sh

up: venv ## Postgres, Redis, the API and workers on this machine (WORKERS=n)
	@exec .venv/bin/callboard up $(if $(WORKERS),--workers "$(WORKERS)")

demo: venv ## feed messages through and count what came out (FILE=messages.csv or .jsonl)
	@exec .venv/bin/callboard demo $(if $(FILE),"$(FILE)")

test: venv ## all tests, on a Postgres and a Redis of their own (ARGS="-k story")
	@$(ALONE) .venv/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

faults: venv ## every fault, done for real, and what it cost (SEED=n ROWS="4 22")
	@$(ALONE) FAULTS_SEED="$(SEED)" FAULTS_ROWS="$(ROWS)" .venv/bin/python -m pytest tests/faults -m "" -v \
		-n 4 --dist load --maxschedchunk 1

check: venv ## lint, format and types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench: venv ## what a call of a model and an event cost, against the SDK alone: a minute or two
	@$(ALONE) .venv/bin/python -m tests.bench

deploy: ## not there yet (HOST=)
	@echo "make deploy is not there yet; deploy/README.md says what is." >&2; exit 1

lock: ## write requirements.lock anew from pyproject.toml (needs uv; UPGRADE=1 takes newer versions)
	@command -v uv >/dev/null || { echo "make lock needs uv on PATH." >&2; exit 1; }
	@uv pip compile pyproject.toml --group embedded --group dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) --quiet --output-file requirements.lock

clean: ## remove .venv and all caches, never the data in .callboard
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './.callboard/*' -prune -exec rm -rf {} +
