# `make demo` and `make test` work on a fresh Debian 12/13 or Ubuntu 22.04/24.04 with root. The environment, packages and images lie in
# ~/.cache/r1prov and may be deleted at any time. In this folder there is only what Python compiles, and dist/docs of `make docs`.

# `exec` lets a signal to make reach the program, and not a shell that waits for it. Programs of the lab lie in sbin, which is not on
# everybody's path.
IN := PATH="$$(./bootstrap):$$PATH:/usr/sbin:/sbin" && export PATH &&

.PHONY: help setup demo test lint unit thorough molecule e2e drift cuts faults liveness door rollout fullsize test-order test-cuda gpu-bundle test-gpu format docs golden lock

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: ## the Python environment and the packages that throwaway hosts need
	@./bootstrap

demo: ## a throwaway server, `r1prov up` on it, a question, an answer
	@$(IN) exec python -m tests.demo

test: ## lint, unit, the whole way, and what is drawn for the day (an hour)
	@$(IN) exec python -m tests.run lint unit molecule e2e --draw

lint: ## ruff, mypy, yamllint, ansible-lint
	@$(IN) exec python -m tests.run lint

unit: ## the package and the plugins, without any host
	@$(IN) exec python -m tests.run unit

thorough: ## plans of 500 random machines, others each time (2 minutes)
	@$(IN) pytest -q --hypothesis-profile=thorough tests/unit/test_offload.py

molecule: ## each role on a fresh host; ROLE=name for one of them
	@$(IN) exec python -m tests.run molecule --keep $(if $(ROLE),--role $(ROLE))

e2e: ## the whole way, on Debian 12 and 13; GROUP=name for one group
	@$(IN) exec python -m tests.run e2e --keep $(if $(GROUP),--group $(GROUP))

drift: ## things put wrong on a server are healed (30 min); RELEASE=trixie
	@$(IN) exec python -m tests.drift $(if $(RELEASE),--release $(RELEASE))

cuts: ## commands are cut off, and the next ones converge (hours); RELEASE=trixie
	@$(IN) exec python -m tests.cuts $(if $(RELEASE),--release $(RELEASE))

faults: ## the transfer under faults at 20 seeds each (half an hour)
	@$(IN) exec python -m tests.faults

liveness: ## a wedged engine is restarted, 20 of 20 (an hour); HOURS=1 of load
	@$(IN) exec python -m tests.liveness $(if $(HOURS),--hours $(HOURS))

door: ## a crowd at a door with three engines (10 min); PART=name for one part
	@$(IN) exec python -m tests.door $(PART)

rollout: ## good and bad versions at a door with three engines (an hour); HABIT=name for one
	@$(IN) exec python -m tests.rollout $(HABIT)

fullsize: ## the transfer at R1's full size, on a thin disk (2 min, 9 GB, root)
	@$(IN) exec python -m tests.fullsize

test-order: ## whether the engine orders settings as the plan does (10 min)
	@$(IN) exec python -m benchmarks.order

test-cuda: ## the engine with CUDA, without a GPU, asked again (an hour)
	@$(IN) tests/cuda/run

gpu-bundle: ## what test-gpu needs without a network: tests/gpu/bundle
	@$(IN) exec python -m tests.gpu.bundle

# It wants a plain Python alone, for a machine without a network cannot make the environment.
test-gpu: ## on a machine with cards: docs/cards.md; PIECE=name for one part
	@exec python3 -m tests.gpu $(PIECE)

format: ## rewrite the Python files in the house style
	@$(IN) ruff format . && ruff check --fix .

docs: ## the pages of docs/ as the code is now: dist/docs/index.html
	@$(IN) python docs/generate.py && NO_MKDOCS_2_WARNING=1 mkdocs build --strict

golden: ## the golden files of the unit tests, as the code is now
	@$(IN) R1PROV_GOLDEN=write pytest -q tests/unit/test_inventory.py tests/unit/test_needs.py tests/unit/test_service_unit.py tests/unit/test_cli_plan.py tests/unit/test_modes.py tests/unit/test_layout.py tests/unit/test_by_hand.py

lock: ## resolve the dependencies of pyproject.toml anew
	@$(IN) uv pip compile --quiet --universal --generate-hashes --group dev pyproject.toml -o requirements.lock \
	    --python-version 3.11 --no-annotate --custom-compile-command "make lock"
