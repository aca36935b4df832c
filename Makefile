.PHONY: ci test lint

ci:
	bash .ci/run

test:
	python -m pytest -q -n 2

lint:
	ruff check . && ruff format --check . && lint-imports && mypy
