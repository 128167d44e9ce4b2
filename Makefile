# Each target makes the environment it needs on its first call; tools/setup_env.py does the work and says how. Examples:
#   make test
#   make test TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
#   make test PYTHON=/path/to/python ARGS="tests/attacks -x"
# Without make, on Windows for instance: python tools/setup_env.py test

TASKS = setup demo test test-slow test-all test-host lint bench
VERSIONS = python3 python python3.14 python3.13 python3.12 python3.11 python3.10
RECENT = -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
STARTER = $(or $(PYTHON),$(shell for p in $(VERSIONS); do $$p $(RECENT) && echo $$p && break; done),python3)

export TORCH PYTHON VENV

.PHONY: $(TASKS)
$(TASKS):
	@$(STARTER) tools/setup_env.py $@ $(ARGS)
