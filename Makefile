# make book [SIZE=smoke|laptop|paper]   run what is not up to date, build the book
# make book SIZE=laptop SEEDS=0         the same with one seed of several, in a part of the time
# make test                             install what the tests need, run all of them
# make record SIZE=laptop               copy this machine's records into data/results/ for committing
# make clean                            remove what was built; models, records and .venv stay
# make distclean                        remove them too
SIZE ?= smoke
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3 python,\
	$(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
BIN := .venv/bin
BOOK_STAMP := .venv/installed-book
TEST_STAMP := .venv/installed-test
NOT_KEPT := metadata.papermill metadata.widgets cell.metadata.papermill
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: help book test record clean distclean install

help:
	@sed -n 's/^# //p;/^SIZE/q' Makefile

book: $(BOOK_STAMP)
	@$(BIN)/safebook book --size $(SIZE) $(if $(SEEDS),--seeds '$(SEEDS)')

record: $(BOOK_STAMP)
	@$(BIN)/safebook record --size $(SIZE)

# What fails in seconds comes first; then the book, which the browser tests read.
test: $(TEST_STAMP)
	$(BIN)/ruff check src tests notebooks conftest.py
	$(BIN)/ruff format --check src tests notebooks conftest.py
	$(BIN)/nbstripout --verify --keep-id --extra-keys "$(NOT_KEPT)" $$(find notebooks -name '*.ipynb' -not -path '*/.*')
	$(BIN)/safebook book --size smoke
	$(BIN)/python -m pytest -n 2 --dist loadgroup --nbmake --nbmake-timeout=600 tests notebooks

install: $(TEST_STAMP)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# A stamp is newer than both files after an installation that went to its end.
$(BOOK_STAMP): pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing the pinned packages into .venv (minutes, once)"
	$(INSTALL) -e '.[book]'
	@touch $@

$(TEST_STAMP): pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing the pinned packages into .venv (minutes, once)"
	$(INSTALL) -e '.[book,test]'
	@touch $(BOOK_STAMP) $@

clean:
	rm -rf _build book/executed book/assets/vendor .pytest_cache .ruff_cache

distclean: clean
	rm -rf results artifacts .snakemake node_modules .venv
