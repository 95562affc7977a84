# make demo: train, evaluate and report on the embedded digits.  make test: the tests.  Needs Python >= 3.11 and make.
# make docs: the site of the documentation, in site/.
# make install DEVICE=cuda13: into .venv, with the jax of a device: cpu (as the others do), cuda12, cuda13, tpu.
PYTHON ?= python3
DEVICE ?= cpu
REQUIREMENTS = requirements$(patsubst %,-%,$(filter-out cpu,$(DEVICE))).txt
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: install demo gallery gallery-colour docs test test-all lint bench clean

install: $(VENV)/bin/python
	@test -n "$(filter $(DEVICE),cpu cuda12 cuda13 tpu)" || { echo "error: DEVICE is '$(DEVICE)'; allowed: cpu, cuda12, cuda13, tpu." >&2; exit 2; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	touch $(VENV)/.installed

demo: $(VENV)/.installed
	$(RUN) main.py --config=configs/digits.py --workdir=runs/digits --mode=train
	$(RUN) main.py --config=configs/digits.py --workdir=runs/digits --mode=eval

gallery: $(VENV)/.installed
	$(RUN) main.py --config=configs/digits_conditional.py --workdir=runs/gallery --mode=train
	$(RUN) main.py --config=configs/digits_conditional.py --workdir=runs/gallery --mode=eval

docs: $(VENV)/.installed-docs
	$(RUN) -m mkdocs build --strict

EMOJI := node_modules/emoji-datasource-twitter

# Train on colour, by class, and make the pictures and the figures of docs/guide/gallery.md; it goes on where it stopped.
gallery-colour: $(EMOJI)/emoji.json $(VENV)/.installed
	$(RUN) main.py --config=configs/emoji.py --workdir=runs/emoji --mode=train
	$(RUN) main.py --workdir=runs/emoji --mode=stats
	$(RUN) main.py --workdir=runs/emoji --mode=eval
	$(RUN) main.py --workdir=runs/emoji --mode=eval --config.eval.only="('sweep',)" --config.eval.sweep="(1.0, 1.5, 2.0, 3.0, 4.0)"

$(EMOJI)/emoji.json:
	@echo "error: $(EMOJI) is not here; to install it: npm install emoji-datasource-twitter" >&2; exit 2

test: $(VENV)/.installed-dev lint
	$(RUN) -m pytest

test-all: $(VENV)/.installed-dev-all lint
	$(RUN) -m pytest -m ""

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .

bench: $(VENV)/.installed-dev
	$(RUN) -m benchmarks.all

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "score_flow needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.installed-dev-all: $(VENV)/.installed-dev requirements-dev-all.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev-all.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed requirements-docs.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache
