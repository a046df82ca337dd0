# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per library: the tests run in two processes, and threads of BLAS and torch would fight over cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test bench lab notebooks docs format clean

demo: $(VENV)/ready
	$(BIN)/recsys-budget demo

test: $(VENV)/ready
	.ci/chromium
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(ONE_THREAD) $(BIN)/pytest -n 2 --dist loadfile

bench: $(VENV)/ready
	for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" --json || exit 1; done

lab: $(VENV)/ready
	$(BIN)/jupyter lab notebooks

# Run the notebooks and keep their output.
notebooks: $(VENV)/ready
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ClearMetadataPreprocessor.enabled=True \
	  --ClearMetadataPreprocessor.preserve_nb_metadata_mask='{"kernelspec", "widgets", ("language_info", "name")}' \
	  --ClearMetadataPreprocessor.preserve_cell_metadata_mask='{"tags"}' \
	  notebooks/*.ipynb notebooks/workshop/*.ipynb notebooks/workshop/solutions/*.ipynb

# The site, without a network and without a warning: out/docs/html/index.html.
docs: $(VENV)/ready
	$(BIN)/sphinx-build -q -W --keep-going -b html -d out/docs/trees docs out/docs/html

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
