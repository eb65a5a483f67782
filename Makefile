PYTHON ?= python
LOCK ?= constraints-cpu.txt
CONFIGS := training/synthetic/configs

.DEFAULT_GOAL := help
.PHONY: help install test test-slow browser test-browser lint format docs bench train-faces bundle judges ci lock canary

# how many GPUs there are, asked once and only where a stage needs to know
GPUS = $(eval GPUS := $(shell $(PYTHON) -c "import torch; print(torch.cuda.device_count())"))$(GPUS)
# $(call train_model,CONFIGURATION,RUN): a stage of the model, if it is not finished; goes on where it stopped
define train_model
test -d runs/$(2)/final || OMP_NUM_THREADS=1 torchrun --nproc_per_node $(if $(filter 0,$(GPUS)),2,$(GPUS)) \
		-m unif2ace.cli train --config $(CONFIGS)/$(1).yaml $(if $(filter 0,$(GPUS)),--set training.use_cpu=true) \
		$$(ls -d runs/$(2)/checkpoint-* > /dev/null 2>&1 && echo --resume)
endef
ENCODERS := $(PYTHON) -m unif2ace.training.synthetic.train_encoders
TOKENIZER := $(PYTHON) -m unif2ace.training.synthetic.train_tokenizer

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## Install the working tree for development, locked (on a GPU machine: make install LOCK=constraints-gpu.txt)
	$(PYTHON) -m pip install -c $(LOCK) -e ".[dev]"

test: ## Run the default tests
	$(PYTHON) -m pytest

test-slow: ## Run the slow tests only
	$(PYTHON) -m pytest -m slow

browser: ## Install what the browser tests of the demo need (Debian, Ubuntu; other systems: any Chromium)
	$(PYTHON) -m pip install -c $(LOCK) -e ".[dev,demo]" "playwright>=1.50"
	command -v chromium || (apt-get update && apt-get install -y --no-install-recommends chromium)

test-browser: ## Run the demo in a headless Chromium; screenshots go to runs/screenshots
	UNIF2ACE_SCREENSHOTS=runs/screenshots $(PYTHON) -m pytest tests/test_demo.py -m slow

lint: ## Check style and formatting
	ruff check .
	ruff format --check .

format: ## Mend style and formatting
	ruff check --fix .
	ruff format .

docs: ## Build the documentation's site into runs/site (needs nothing but the extra `docs`)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

bench: ## Measure the bundled checkpoint on held-out painted faces
	$(PYTHON) benchmarks/quality.py

train-faces: ## Train a model of rendered faces from nothing: render, tokenizers, encoders, model (resumes; on GPUs where there are any)
	unif2ace data render --split validation --count 1024 --out runs/rendered
	unif2ace data render --split test --count 1024 --out runs/rendered
	unif2ace data render --split train --count 30000 --out runs/rendered --workers 2
	$(PYTHON) -m unif2ace.training.train_text_tokenizer --num-bits 12 --out runs/rendered-text-tokenizer
	$(ENCODERS) judge --config $(CONFIGS)/encoders-rendered.yaml
	$(ENCODERS) judge --config $(CONFIGS)/encoders-rendered-measuring.yaml
	$(TOKENIZER) --config $(CONFIGS)/tokenizer-rendered.yaml
	$(TOKENIZER) --config $(CONFIGS)/tokenizer-rendered.yaml --encode
	$(ENCODERS) clip --config $(CONFIGS)/encoders-rendered.yaml
	$(ENCODERS) face --config $(CONFIGS)/encoders-rendered.yaml
	$(call train_model,unif2ace-rendered,unif2ace-rendered)

train-painted: ## Train the bundled checkpoint from nothing: paint, tokenizers, encoders, model (hours on a CPU; resumes)
	$(PYTHON) -m unif2ace.training.synthetic.painted.dataset --split test --count 1000 --out runs/painted
	$(PYTHON) -m unif2ace.training.synthetic.painted.dataset --split validation --count 1000 --out runs/painted
	$(PYTHON) -m unif2ace.training.synthetic.painted.dataset --split train --count 30000 --out runs/painted --workers 2
	$(PYTHON) -m unif2ace.training.synthetic.painted.dataset --split train --count 12000 --pictures-per-person 10 \
		--out runs/painted-people --workers 2
	$(PYTHON) -m unif2ace.training.synthetic.painted.dataset --split validation --count 800 --pictures-per-person 4 \
		--out runs/painted-people
	$(PYTHON) -m unif2ace.training.train_text_tokenizer --out runs/text_tokenizer
	$(ENCODERS) judge --config $(CONFIGS)/encoders-faces.yaml
	$(ENCODERS) clip --config $(CONFIGS)/encoders-faces.yaml
	$(ENCODERS) face --config $(CONFIGS)/encoders-faces.yaml
	$(TOKENIZER) --config $(CONFIGS)/tokenizer-faces.yaml
	$(TOKENIZER) --config $(CONFIGS)/tokenizer-faces.yaml --encode
	$(call train_model,unif2ace-faces,unif2ace)
	$(call train_model,unif2ace-faces-2,unif2ace-2)
	$(ENCODERS) clip --config $(CONFIGS)/encoders-faces-2.yaml --threads 2
	$(call train_model,unif2ace-faces-3,unif2ace-3)
	$(TOKENIZER) --config $(CONFIGS)/tokenizer-faces-decoder.yaml
	$(TOKENIZER) --config $(CONFIGS)/tokenizer-faces-2.yaml
	$(TOKENIZER) --config $(CONFIGS)/tokenizer-faces-2.yaml --encode
	$(call train_model,unif2ace-faces-4,unif2ace-4)
	$(call train_model,unif2ace-faces-5,unif2ace-5)
	$(TOKENIZER) --config $(CONFIGS)/tokenizer-faces-2-decoder.yaml

bundle: ## Put the trained model into the package, as the Hub folder it would be
	$(PYTHON) -m unif2ace.hub_card.bundle --model runs/unif2ace-5/final \
		--image-tokenizer runs/tokenizer-2-decoder/final --out hub_card/unif2ace-faces --overwrite

judges: ## Let the tests of transformers and PEFT, and a linter, judge our model (some minutes; needs PyPI once)
	$(PYTHON) -m pip install --quiet -e ".[dev,judges]"
	$(PYTHON) tests/judges/run.py

ci: ## Install from scratch by the README's command, lint, test; the lowest and the newest releases too
	.ci/run

lock: ## Write constraints-cpu.txt, constraints-gpu.txt and constraints-lowest.txt anew, from setup.py's ranges
	$(PYTHON) -m pip install --quiet "uv>=0.9"
	PYTHON=$(PYTHON) .ci/lock

canary: ## Test with the newest releases of everything, past setup.py's caps (KEEP='torch==2.13.0' holds some back)
	.ci/canary
